"""CartPole and Acrobot in tensors against gymnasium's own."""

from __future__ import annotations

from math import pi
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.tensor.acrobot import Acrobot, Links
from lit_gfs.envs.tensor.cartpole import CartPole, Poles

LAST_BITS = 1e-12
"""What sines and cosines of two libraries may differ by, after one step."""


@pytest.mark.parametrize("sutton_barto", [False, True])
def test_every_step_of_cartpole_is_gymnasiums(sutton_barto: bool) -> None:
    count = 64
    game = CartPole(sutton_barto)
    simulator: Any = gymnasium.make_vec(
        "CartPole-v1",
        count,
        vectorization_mode="vector_entry_point",
        sutton_barto_reward=sutton_barto,
        max_episode_steps=10**9,
    )
    simulator.reset(seed=0)
    generator = np.random.default_rng(0)
    state = game.opening(torch.from_numpy(generator.random((count, 4))))
    falls = 0
    for _ in range(300):
        simulator.state, simulator.prev_done[:] = state.values.numpy().T.copy(), False
        action = generator.integers(0, 2, count)
        before = state.values.clone()
        after, reward, over = game.step(state, torch.from_numpy(action), torch.empty(count, 0))
        observation, expected_reward, expected_over, _, _ = simulator.step(action)
        np.testing.assert_allclose(after.values.numpy(), simulator.state.T, rtol=0, atol=LAST_BITS)
        np.testing.assert_allclose(game.show(after).numpy(), observation, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(over.numpy(), expected_over)
        np.testing.assert_array_equal(reward.numpy(), expected_reward)
        assert torch.equal(state.values, before)
        falls += int(over.sum())
        # Where a pole has fallen, the next one begins anywhere, also at the edge of the track.
        anywhere = torch.from_numpy(generator.uniform(-1, 1, (count, 4)) * [2.4, 3, 0.2, 3])
        state = Poles(torch.where(over[:, None], anywhere, after.values))
    assert falls > count


def test_every_step_of_acrobot_is_gymnasiums() -> None:
    count = 16
    game = Acrobot()
    simulator: Any = gymnasium.make("Acrobot-v1").unwrapped
    generator = np.random.default_rng(0)
    state = game.opening(torch.from_numpy(generator.random((count, 4))))
    ends, wraps, bounded = 0, 0, 0
    for time in range(400):
        action = generator.integers(0, 3, count)
        after, reward, over = game.step(state, torch.from_numpy(action), torch.empty(count, 0))
        shown = game.show(after)
        for index in range(count):
            simulator.state = state.values[index].numpy()
            observation, expected_reward, terminated, _, _ = simulator.step(action[index])
            np.testing.assert_allclose(after.values[index], simulator.state, rtol=0, atol=1e-11)
            np.testing.assert_allclose(shown[index], observation, rtol=1e-6, atol=1e-6)
            assert (float(reward[index]), bool(over[index])) == (expected_reward, terminated)
        ends += int(over.sum())
        wraps += int(((after.values - state.values)[:, :2].abs() > pi).sum())
        bounded += int((after.values[:, 3].abs() == 9 * pi).sum())
        # Half of the time the links go on, else they begin anywhere, at up to the highest rates.
        anywhere = torch.from_numpy(generator.uniform(-1, 1, (count, 4)) * pi * [1, 1, 4, 9])
        state = after if time % 2 else Links(anywhere)
    assert min(ends, wraps, bounded) > 20


def test_openings_are_gymnasiums() -> None:
    """For the same numbers in [0, 1), which its generators scale to their bounds."""
    numbers = np.random.default_rng(3).random((5, 4))
    draws = torch.from_numpy(numbers)
    poles = np.random.default_rng(3).uniform(-0.05, 0.05, (5, 4))
    np.testing.assert_allclose(CartPole().opening(draws).values, poles, rtol=0, atol=1e-17)
    links = np.random.default_rng(3).uniform(-0.1, 0.1, (5, 4)).astype(np.float32)
    np.testing.assert_array_equal(Acrobot().opening(draws).values.numpy(), links)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_spaces_are_those_of_the_twin(env_id: str) -> None:
    ours, twin = (EnvSpec.from_env(make_env(prefix + env_id, 3)) for prefix in ("tensor/", ""))
    assert vars(ours) == {**vars(twin), "env_id": f"tensor/{env_id}"}


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_pictures_are_gymnasiums(env_id: str) -> None:
    env: Any = make_env(f"tensor/{env_id}", 2, seed=0, render=True)
    env.reset()
    for _ in range(5):
        env.advance(torch.tensor([0, 1]))
    simulator: Any = gymnasium.make(env_id, render_mode="rgb_array").unwrapped
    simulator.reset()
    for index in range(2):
        simulator.state = env._episodes.game.values[index].numpy()
        np.testing.assert_array_equal(env.observations["pixels"][index], simulator.render())
    assert not torch.equal(*env.observations["pixels"])
