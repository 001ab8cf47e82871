"""The control suite against dm_control's own environments."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from torchrl.envs import check_env_specs

from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.dm_control import _tolerance, rewards, suite
from lit_gfs.envs.simulators import env_seeds
from lit_gfs.errors import EnvironmentFault, UserError

SIGMOIDS = [
    "gaussian",
    "hyperbolic",
    "long_tail",
    "reciprocal",
    "cosine",
    "linear",
    "quadratic",
    "tanh_squared",
]


def raw(domain: str, task: str, seed: int, num_envs: int) -> list[Any]:
    """Load dm_control's own environments with the seeds that a batch of ours derives from ``seed``."""
    return [
        suite.load(domain, task, task_kwargs={"random": np.random.RandomState(each)})
        for each in env_seeds(seed, num_envs).tolist()
    ]


def flat(step: Any) -> list[float]:
    values = np.concatenate([np.ravel(value) for value in step.observation.values()])
    return values.astype(np.float32).tolist()


def play(env: Any, actions: torch.Tensor, seed: int) -> list[TensorDictBase]:
    """Reset with a seed and step; return every step's ``next`` and what follows it."""
    env.set_seed(seed)
    state = env.reset()
    seen = [state.clone()]
    for action in actions:
        step, state = env.step_and_maybe_reset(state.set("action", action))
        seen += [step["next"].clone(), state.clone()]
    return seen


def draw_actions(env: Any, steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, *env.action_spec.shape, generator=generator) * 2 - 1


def test_spec() -> None:
    env = make_env("dm_control/walker-walk-v0", 2)
    spec = EnvSpec.from_env(env)
    bounds = ((-1.0,) * 6, (1.0,) * 6)
    expected = EnvSpec(
        "dm_control/walker-walk-v0", (24,), "float32", None, *bounds, 1, max_episode_steps=1000
    )
    assert spec == expected
    assert spec.action_dim == 6
    assert not spec.is_discrete
    check_env_specs(env)


@pytest.mark.parametrize("task", ["walker-walk", "cheetah-run", "quadruped-walk", "acrobot-swingup"])
def test_steps_equal_dm_controls(task: str) -> None:
    """Euler and Runge-Kutta, one and several substeps, and bounds other than [-1, 1] (quadruped)."""
    env = make_env(f"dm_control/{task}-v0", 2)
    actions = draw_actions(env, 12)
    seen = play(env, actions, 4)
    domain, name = task.split("-")
    for index, reference in enumerate(raw(domain, name, 4, 2)):
        assert seen[0]["observation"][index].tolist() == flat(reference.reset())
        bounds = reference.action_spec()
        for action, next_ in zip(actions, seen[1::2], strict=True):
            unit = (action[index].numpy().astype(np.float64) + 1) / 2
            expected = reference.step(bounds.minimum + unit * (bounds.maximum - bounds.minimum))
            np.testing.assert_allclose(next_["observation"][index], flat(expected), rtol=1e-5, atol=1e-6)
            assert next_["reward"][index].item() == pytest.approx(expected.reward, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("sigmoid", SIGMOIDS)
@pytest.mark.parametrize("bounds", [(0.0, 0.0), (-1.0, 0.5), (1.0, float("inf"))])
@pytest.mark.parametrize("margin", [0.0, 0.7, 10])
def test_light_tolerance_equals_the_suites(sigmoid: str, bounds: tuple[float, float], margin: float) -> None:
    values = [*np.random.default_rng(0).normal(0, 4, 200), *bounds, 0.0, np.nan, -np.inf]
    for x in (cast(each) for each in values for cast in (float, np.float64, np.asarray)):
        for at_margin in (0.1, 0.6):
            arguments = (x, bounds, margin, sigmoid, at_margin)
            mine, theirs = _tolerance(*arguments), rewards.tolerance(*arguments)
            np.testing.assert_array_equal(mine, theirs)
            assert type(mine) is type(theirs)


@pytest.mark.parametrize(
    "task", ["cheetah-run", "humanoid-walk", "reacher-hard", "hopper-hop", "swimmer-swimmer6"]
)
def test_rewards_equal_the_suites_bit_for_bit(task: str) -> None:
    env = make_env(f"dm_control/{task}-v0", 1, seed=0)
    state = env.reset()
    simulator = env._simulators[0]
    assert simulator._reward != simulator.environment.task.get_reward
    for action in draw_actions(env, 20):
        _, state = env.step_and_maybe_reset(state.set("action", action))
        expected = simulator.environment.task.get_reward(simulator.environment.physics)
        assert float(simulator._reward(simulator.environment.physics)) == float(expected)


def test_time_limit_truncates_and_shows_the_final_observation() -> None:
    env = make_env("dm_control/pendulum-swingup-v0", 2)
    actions = draw_actions(env, 1001)
    seen = play(env, actions, 6)
    nexts, states = seen[1::2], seen[2::2]
    assert not torch.stack([step["terminated"] for step in nexts]).any()
    ended = torch.stack([step["truncated"] for step in nexts]).squeeze(-1)
    assert ended.sum(0).tolist() == [1, 1]
    assert ended[999].all()
    for index, reference in enumerate(raw("pendulum", "swingup", 6, 2)):
        reference.reset()
        steps = [reference.step(action[index].numpy().astype(np.float64)) for action in actions[:1000]]
        assert steps[-1].last()
        assert nexts[999]["observation"][index].tolist() == flat(steps[-1])
        assert states[999]["observation"][index].tolist() == flat(reference.reset())
        total = sum(step.reward for step in steps)
        assert nexts[999]["episode_return"][index].item() == pytest.approx(total, rel=1e-6)
    assert nexts[999]["episode_length"].flatten().tolist() == [1000, 1000]
    assert states[999]["episode_return"].flatten().tolist() == [0, 0]
    assert nexts[1000]["episode_length"].flatten().tolist() == [1, 1]


def test_discount_zero_terminates(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env("dm_control/pendulum-swingup-v0", 2, seed=0)
    state = env.reset()
    ends: Any = {0: 0.0, 1: 1.0}
    for index, discount in ends.items():
        task = env._simulators[index].environment.task
        monkeypatch.setattr(task, "get_termination", lambda physics, discount=discount: discount)
    step = env.step(state.set("action", torch.zeros(2, 1)))["next"]
    assert step["terminated"].flatten().tolist() == [True, False]
    assert step["truncated"].flatten().tolist() == [False, True]


def test_action_repeat_sums_rewards_and_stops_at_the_last_step() -> None:
    env = make_env("dm_control/pendulum-swingup-v0", 1, action_repeat=3)
    assert EnvSpec.from_env(env).frame_skip == 3
    actions = draw_actions(env, 334)
    seen = play(env, actions, 9)[1::2]
    (reference,) = raw("pendulum", "swingup", 9, 1)
    reference.reset()
    for next_, action in zip(seen, actions, strict=True):
        reward = 0.0
        for _ in range(3):
            expected = reference.step(action[0].numpy().astype(np.float64))
            reward += expected.reward
            if expected.last():
                break
        assert next_["reward"].item() == pytest.approx(reward, rel=1e-6)
        assert next_["observation"][0].tolist() == flat(expected)
    assert seen[-1]["truncated"].all()
    assert not seen[-2]["done"].any()


def test_actions_are_clipped() -> None:
    env = make_env("dm_control/cheetah-run-v0", 1)
    inside = play(env, torch.ones(5, 1, 6), 0)
    outside = play(env, torch.full((5, 1, 6), 7.0), 0)
    assert torch.equal(inside[-1]["observation"], outside[-1]["observation"])


def test_unlimited_actuators_take_actions_as_they_are() -> None:
    env = make_env("dm_control/lqr-lqr_2_1-v0", 1)
    action = torch.tensor([[[0.5]]])
    seen = play(env, action, 2)
    reference = suite.load("lqr", "lqr_2_1", task_kwargs={"random": 0})
    reference.task._random = np.random.RandomState(int(env_seeds(2, 1)[0]))
    reference.reset()
    assert seen[1]["observation"][0].tolist() == flat(reference.step(np.array([0.5])))


@pytest.mark.parametrize("task", ["walker-walk", "finger-turn_hard", "swimmer-swimmer6"])
def test_a_seed_decides_everything_that_follows(task: str) -> None:
    """Also where tasks change the model in an episode's first step (finger, swimmer: the target)."""
    used = make_env(f"dm_control/{task}-v0", 2, seed=5)
    actions = draw_actions(used, 30)
    play(used, actions[:17], 8)
    again, fresh = play(used, actions, 21), play(make_env(f"dm_control/{task}-v0", 2), actions, 21)
    for mine, theirs in zip(again, fresh, strict=True):
        assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    first = again[0]["observation"]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, play(used, actions[:1], 22)[0]["observation"])
    assert not torch.equal(used.reset()["observation"], used.reset()["observation"])


def test_partial_reset_of_episodes_that_go_on() -> None:
    env = make_env("dm_control/cheetah-run-v0", 2, seed=0)
    _, state = env.step_and_maybe_reset(env.reset().set("action", torch.zeros(2, 6)))
    before = state["observation"].clone()
    state = env.reset(state.set("_reset", torch.tensor([[True], [False]])))
    assert torch.equal(state["observation"][1], before[1])
    assert not torch.equal(state["observation"][0], before[0])
    assert state["episode_length"].flatten().tolist() == [0, 1]


def test_divergence_is_an_error() -> None:
    env = make_env("dm_control/pendulum-swingup-v0", 1, seed=0)
    state = env.reset().set("action", torch.zeros(1, 1))
    env._simulators[0].environment.physics.data.qvel[:] = np.nan
    with pytest.raises(EnvironmentFault, match=r"environment 0 .*diverged"):
        env.step(state)


def test_rendering_after_an_environment_without_it() -> None:
    """It works exactly where dm_control itself can draw, and is refused in one clear line elsewhere."""
    make_env("dm_control/cheetah-run-v0")
    probe = "from dm_control import suite; suite.load('cheetah', 'run').physics.render(8, 8)"
    environment = {**os.environ, "MUJOCO_GL": "egl"}
    probed = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True)
    if probed.returncode != 0:
        with pytest.raises(UserError, match="MUJOCO_GL"):
            make_env("dm_control/cheetah-run-v0", render=True)
        return
    env = make_env("dm_control/cheetah-run-v0", 2, seed=0, render=True)
    state = env.reset()
    first = state["pixels"]
    assert first.shape == (2, 240, 320, 3)
    assert first.float().std() > 10
    for _ in range(5):
        _, state = env.step_and_maybe_reset(state.set("action", torch.ones(2, 6)))
    assert not torch.equal(first, state["pixels"])


def test_action_repeat_must_be_positive() -> None:
    with pytest.raises(UserError, match="action_repeat is 0"):
        make_env("dm_control/cheetah-run-v0", action_repeat=0)


# -- discrete actions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "values", "actions"), [("cartpole-swingup", 3, 3), ("reacher-easy", 5, 25)]
)
def test_discrete_actions_are_combinations_of_evenly_spaced_values(
    env_id: str, values: int, actions: int
) -> None:
    continuous = make_env(f"dm_control/{env_id}-v0", 2)
    discrete = make_env(f"dm_control/{env_id}-v0", 2, values_per_actuator=values)
    spec = EnvSpec.from_env(discrete)
    chosen = torch.randint(actions, (20, 2), generator=torch.Generator().manual_seed(0))
    # Index by index: digits in base ``values``, the last actuator's last.
    digits = [chosen // values**place % values for place in reversed(range(continuous.action_spec.shape[-1]))]
    meant = torch.stack(digits, -1).float() * 2 / (values - 1) - 1

    assert spec.num_actions == actions
    check_env_specs(discrete)
    for got, expected in zip(play(discrete, chosen, 3), play(continuous, meant, 3), strict=True):
        assert torch.equal(got["observation"], expected["observation"])


def test_discrete_actions_are_refused_where_they_would_be_too_many() -> None:
    with pytest.raises(UserError, match="3, which makes 10,460,353,203 actions of the 21 actuators"):
        make_env("dm_control/humanoid-walk-v0", 1, values_per_actuator=3)
    with pytest.raises(UserError, match="values_per_actuator is 1; expected null or a whole number"):
        make_env("dm_control/cartpole-swingup-v0", 1, values_per_actuator=1)
