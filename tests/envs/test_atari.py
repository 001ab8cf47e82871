"""Atari against ALE's own simulators, stepped beside it."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from tensordict import TensorDictBase
from torchrl.envs import check_env_specs

from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.atari import AtariEnv
from lit_gfs.envs.simulators import env_seeds
from lit_gfs.errors import EnvironmentFault, UserError

Trajectory = list[TensorDictBase]


def play(env: Any, actions: torch.Tensor, seed: int) -> tuple[Trajectory, Trajectory]:
    """Reset with a seed and step; return every step's ``next`` and every state acted in."""
    env.set_seed(seed)
    state = env.reset()
    nexts, states = [], [state.clone()]
    for action in actions:
        step, state = env.step_and_maybe_reset(state.set("action", action))
        nexts.append(step["next"].clone())
        states.append(state.clone())
    return nexts, states


def draw_actions(env: Any, steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(env.action_spec.n, (steps, env.num_envs), generator=generator)


def equal(mine: Trajectory, theirs: Trajectory) -> bool:
    return all(
        torch.equal(a[key], value) for a, b in zip(mine, theirs, strict=True) for key, value in b.items()
    )


def test_spec() -> None:
    env = make_env("ALE/Breakout-v5", 2)
    spec = EnvSpec("ALE/Breakout-v5", (4, 84, 84), "uint8", 4, None, None, 4, True, 27_000)
    assert EnvSpec.from_env(env) == spec
    assert EnvSpec.from_env(env).is_pixels
    check_env_specs(env)
    assert EnvSpec.from_env(make_env("ALE/Breakout-v5", full_action_space=True)).num_actions == 18


def test_steps_equal_the_raw_simulator() -> None:
    """Raw rewards, final observations, sticky actions, and one simulator step per environment step."""
    env = make_env("ALE/Breakout-v5", 4)
    actions = draw_actions(env, 260)
    nexts, states = play(env, actions, 11)
    simulator: Any = AtariVectorEnv(
        "breakout", 4, repeat_action_probability=0.25, reward_clipping=False, autoreset_mode="SameStep"
    )
    observation, info = simulator.reset(seed=env_seeds(11, 4))
    assert np.array_equal(states[0]["observation"], observation)
    lives, totals, lengths = info["lives"], np.zeros(4), np.zeros(4, dtype=int)
    finished = lost_lives = 0
    for step, state, action in zip(nexts, states[1:], actions, strict=True):
        observation, reward, terminated, truncated, info = simulator.step(action.numpy())
        totals, lengths = totals + reward, lengths + 1
        assert np.array_equal(state["observation"], observation)
        for index in range(4):
            final = info["final_obs"][index] if terminated[index] else observation[index]
            assert np.array_equal(step["observation"][index], final)
        assert step["reward"].flatten().tolist() == reward.tolist()
        assert step["terminated"].flatten().tolist() == terminated.tolist()
        assert not truncated.any()
        assert not step["truncated"].any()
        assert step["episode_return"].flatten().tolist() == totals.tolist()
        assert step["episode_length"].flatten().tolist() == lengths.tolist()
        lost = terminated | (info["lives"] < lives)
        assert step["end_of_life"].flatten().tolist() == lost.tolist()
        assert state["end_of_life"].flatten().tolist() == (lost & ~terminated).tolist()
        lives = info["lives"]
        totals[terminated] = lengths[terminated] = 0
        finished += terminated.sum()
        lost_lives += lost.sum()
    assert finished >= 2
    assert lost_lives >= 5 * finished


def test_the_frame_limit_truncates() -> None:
    env = make_env("ALE/Pong-v5", 2, max_frames=80)
    nexts, states = play(env, draw_actions(env, 41), 0)
    for number, (step, state) in enumerate(zip(nexts, states[1:], strict=True), start=1):
        ended = number % 20 == 0
        assert step["truncated"].flatten().tolist() == [ended, ended]
        assert step["done"].flatten().tolist() == [ended, ended]
        assert not step["terminated"].any()
        assert not step["end_of_life"].any()
        assert step["episode_length"].flatten().tolist() == [(number - 1) % 20 + 1] * 2
        assert torch.equal(step["observation"], state["observation"]) != ended


def test_a_seed_decides_everything_that_follows() -> None:
    used = make_env("ALE/Breakout-v5", 3, seed=5)
    actions = draw_actions(used, 220, seed=1)
    play(used, actions[:57], 8)
    again, fresh = play(used, actions, 21), play(make_env("ALE/Breakout-v5", 3), actions, 21)
    assert equal(again[0], fresh[0])
    assert equal(again[1], fresh[1])
    assert torch.stack([step["done"] for step in again[0]]).any()
    assert not equal(play(used, actions, 22)[0], fresh[0])
    assert len({state.numpy().tobytes() for state in again[1][40]["observation"]}) == 3


def test_a_full_reset_without_a_seed_goes_on_with_the_generator() -> None:
    """30 numbers of no-ops and sticky actions: two episodes with the same actions differ."""
    env = make_env("ALE/Breakout-v5", 4, seed=0)
    actions = draw_actions(env, 30)

    def episode() -> torch.Tensor:
        state = env.reset()
        for action in actions:
            _, state = env.step_and_maybe_reset(state.set("action", action))
        return state["observation"]

    assert not torch.equal(episode(), episode())


def test_partial_reset_of_games_that_go_on() -> None:
    env = make_env("ALE/Breakout-v5", 3, seed=0)
    state: TensorDictBase = env.reset()
    for action in draw_actions(env, 20):
        _, state = env.step_and_maybe_reset(state.set("action", action))
    before = state["observation"].clone()
    state = env.reset(state.set("_reset", torch.tensor([[False], [True], [False]])))
    assert torch.equal(state["observation"][[0, 2]], before[[0, 2]])
    assert not torch.equal(state["observation"][1], before[1])
    assert state["episode_length"].flatten().tolist() == [20, 0, 20]


def test_rendering_changes_nothing_and_stays_in_lock_step() -> None:
    plain, rendered = make_env("ALE/Breakout-v5", 2), make_env("ALE/Breakout-v5", 2, render=True)
    actions = draw_actions(plain, 300, seed=2)
    expected, _ = play(plain, actions, 3)
    heard: dict[str, list[Any]] = {"observation": [], "pixels": []}
    for key, simulator in rendered._simulators.items():
        simulator.recv = recording(simulator.recv, heard[key])
    nexts, states = play(rendered, actions, 3)
    assert equal(nexts, expected)
    assert heard["observation"] == heard["pixels"]
    assert len(heard["pixels"]) == 300
    finished = [number for number, step in enumerate(nexts) if step["done"].any()]
    assert finished
    assert states[0]["pixels"].shape == (2, 210, 160, 3)
    assert states[0]["pixels"].dtype == torch.uint8
    for number, (step, state) in enumerate(zip(nexts, states[1:], strict=True)):
        assert torch.equal(step["pixels"], state["pixels"]) == (number not in finished)


def recording(receive: Any, heard: list[Any]) -> Any:
    """Note everything but the pictures that a simulator answers."""

    def answer() -> Any:
        observation, *flags, info = receive()
        kept = {key: value.tolist() for key, value in info.items() if key != "final_obs"}
        heard.append(([flag.tolist() for flag in flags], kept))
        return observation, *flags, info

    return answer


def test_an_action_that_does_not_exist() -> None:
    env = make_env("ALE/Pong-v5", 1, seed=0)
    with pytest.raises(EnvironmentFault, match="there are 6"):
        env.step(env.reset().set("action", torch.tensor([6])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeat_action_probability": 1.5}, "from 0 to 1"),
        ({"max_frames": 0}, "at least 1"),
        ({"noop_max": -1}, "at least 0"),
        ({"num_threads": -1}, "at least 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AtariEnv("ALE/Pong-v5", 1, **options)


def test_rewards_are_raw() -> None:
    """A pellet of Ms. Pac-Man is worth 10 points; a clipped reward would be 1."""
    env = make_env("ALE/MsPacman-v5", 2, seed=0)

    rewards = env.rollout(150, break_when_any_done=False)["next", "reward"]

    assert rewards.max() >= 10


def test_games_last_108000_frames_at_most_unless_told_otherwise() -> None:
    parameters = inspect.signature(AtariEnv.__init__).parameters

    assert parameters["max_frames"].default == 108_000
    assert parameters["repeat_action_probability"].default == 0.25
