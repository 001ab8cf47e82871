"""Simulators that are brought back go on as the ones that never stopped, whatever came before."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

from lit_gfs.envs import make_env
from lit_gfs.envs.atari import AtariEnv
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.envs.history import History

SUITES: dict[str, dict[str, Any]] = {
    "CartPole-v1": {},
    "Acrobot-v1": {"max_episode_steps": 23},
    "Pendulum-v1": {"max_episode_steps": 9},
    "ALE/Breakout-v5": {"max_frames": 160},
    "dm_control/cartpole-swingup-v0": {"action_repeat": 50},
    "MinAtar/Breakout-v1": {},
    "MinAtar/Asterix-v1": {"max_episode_steps": 40},
    "MinAtar/Freeway-v1": {"max_episode_steps": 40},
    "MinAtar/SpaceInvaders-v1": {},
    "MinAtar/Seaquest-v1": {"max_episode_steps": 60},
}


@pytest.fixture(autouse=True)
def _short_lived_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give simulators new seeds every few episodes."""
    monkeypatch.setattr(BatchedEnv, "steps_per_seed", 40)
    monkeypatch.setattr(AtariEnv, "steps_per_seed", 100)


def make(env_id: str, seed: int) -> BatchedEnv:
    env = make_env(env_id, 3, seed=seed, **SUITES.get(env_id, {}))
    env.keep_history()
    env.reset()
    return env


def advance(env: BatchedEnv, steps: int, seed: int) -> list[np.ndarray]:
    """Take random steps; return all that they led to."""
    generator = torch.Generator().manual_seed(seed)
    outcomes = []
    for _ in range(steps):
        space: Any = env.action_spec.space
        shape = env.action_spec.shape
        action = (
            torch.rand(shape, generator=generator) * 2 - 1
            if env.action_spec.dtype.is_floating_point
            else torch.randint(int(space.n), shape, generator=generator)
        )
        step = env.advance(action.numpy())
        outcomes += [step.observations["observation"], step.reward, step.terminated, step.truncated]
        outcomes += [step.episode_return, step.episode_length, env.observations["observation"]]
    return outcomes


def stored(snapshot: Any) -> Any:
    """Return what is read back of a snapshot that a checkpoint holds."""
    file = io.BytesIO()
    torch.save(snapshot, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("env_id", "steps"),
    # MuJoCo's many substeps take seconds: once is enough.
    [(name, steps) for name in SUITES for steps in (0, 1, 150) if steps == 150 or "dm_control" not in name],
)
def test_a_restored_environment_goes_on_as_the_one_that_never_stopped(env_id: str, steps: int) -> None:
    env, other = make(env_id, seed=1), make(env_id, seed=2)
    advance(env, steps, seed=3)
    advance(other, 17, seed=4)

    assert other.restore(stored(env.snapshot()))

    first = advance(env, 200, seed=5)
    assert all(map(np.array_equal, first, advance(other, 200, seed=5)))
    # And once more, from the restored one.
    third = make(env_id, seed=6)
    assert third.restore(stored(other.snapshot()))
    assert all(map(np.array_equal, advance(env, 60, seed=7), advance(third, 60, seed=7)))
    for each in (env, other, third):
        each.close()


def test_what_shows_something_else_is_told() -> None:
    env, other = make("Acrobot-v1", seed=1), make("Acrobot-v1", seed=2)
    advance(env, 30, seed=3)
    snapshot = env.snapshot()
    assert snapshot is not None
    snapshot["shown"]["observation"][1, 0] += 1

    assert not other.restore(snapshot)


def test_simulators_that_do_not_repeat_themselves_have_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make("Acrobot-v1", seed=1)
    assert env.is_restorable
    monkeypatch.setattr(type(env), "is_repeatable", False)

    env = make("Acrobot-v1", seed=1)

    assert not env.is_restorable
    assert env.snapshot() is None


def test_nothing_is_kept_unless_it_is_asked_for() -> None:
    env = make_env("Acrobot-v1", 2, seed=1)
    env.reset()

    assert env.snapshot() is None


def test_a_history_holds_the_actions_since_the_oldest_seed() -> None:
    history = History(num_envs=2, steps_per_seed=3)
    assert history.state() is None
    history.begin_all(np.array([7, 8]))
    for step in range(5):
        history.record(np.array([step, 10 + step]))
    assert history.due(np.array([False, True])).tolist() == [1]

    history.begin(np.array([1]), np.array([9]))
    history.record(np.array([5, 15]))
    state = history.state()

    assert state is not None
    assert state["seeds"].tolist() == [7, 9]
    assert state["steps"].tolist() == [6, 1]
    assert state["actions"].tolist() == [[step, 10 + step] for step in range(6)]
    assert history.due(np.array([True, True])).tolist() == [0]

    history.begin(np.array([0]), np.array([6]))
    state = history.state()
    assert state is not None
    assert state["actions"].tolist() == [[5, 15]]


def test_a_loaded_history_goes_on_as_the_saved_one() -> None:
    history, loaded = History(num_envs=2, steps_per_seed=3), History(num_envs=2, steps_per_seed=3)
    history.begin_all(np.array([7, 8]))
    for step in range(4):
        history.record(np.array([step, 10 + step]))
    history.begin(np.array([1]), np.array([9]))  # seeds of different ages
    history.record(np.array([4, 14]))
    saved = history.state()
    assert saved is not None
    loaded.load(saved)

    for each in (history, loaded):
        each.record(np.array([5, 15]))
        assert each.due(np.array([True, True])).tolist() == [0]
    first, second = history.state(), loaded.state()
    assert first is not None
    assert second is not None
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_seeds_follow_from_each_other_and_differ() -> None:
    history = History(num_envs=2, steps_per_seed=1)
    history.begin_all(np.array([7, 7]))
    seeds = history.next_seeds(np.array([0, 1]))
    assert len({7, *seeds.tolist()}) == 3
    assert history.next_seeds(np.array([0, 1])).tolist() == seeds.tolist()


def test_an_episode_that_never_ends_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_gfs.envs.history.MOST_STEPS", 10)
    history = History(num_envs=1, steps_per_seed=3)
    history.begin_all(np.array([7]))
    for _ in range(11):
        history.record(np.array([0]))

    assert not history.is_complete
    assert history.state() is None


@pytest.mark.parametrize(
    ("env_id", "options", "limit"),
    [
        ("CartPole-v1", {}, 500),
        ("CartPole-v1", {"max_episode_steps": 20}, 20),
        ("Acrobot-v1", {}, 500),
        ("CliffWalking-v1", {}, None),
        ("CliffWalking-v1", {"max_episode_steps": 30}, 30),
        ("ALE/Pong-v5", {}, 27_000),
        ("ALE/Pong-v5", {"max_frames": 161}, 41),
        ("dm_control/cartpole-swingup-v0", {"action_repeat": 3}, 334),
        ("MinAtar/Breakout-v1", {}, 10_000),
        ("MinAtar/Breakout-v1", {"max_episode_steps": None}, None),
    ],
)
def test_the_time_limit_is_known(env_id: str, options: dict[str, Any], limit: int | None) -> None:
    env = make_env(env_id, 1, **options)
    assert env.time_limit == limit
    env.close()
