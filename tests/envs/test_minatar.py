"""The batched games against the ``minatar`` package, and the suite around them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from minatar import Environment
from numpy.typing import NDArray
from torchrl.envs import check_env_specs

from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.make import complete_options
from lit_gfs.envs.minatar import minatar_games
from lit_gfs.envs.minatar.env import BATCHED_GAMES
from lit_gfs.envs.minatar.game import FIRE, LEFT, RIGHT, UP, State
from lit_gfs.errors import UserError
from lit_gfs.metrics.scores import human_normalized_score

MODULES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
IDS = [f"MinAtar/{name}-v1" for name in MODULES]
BATCHED = [f"MinAtar/{name}-v1" for name in BATCHED_GAMES]


class SharedDraws:
    """A stream of numbers in [0, 1), read as the package reads its generator."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self.count = 0

    def rand(self, size: int | None = None) -> Any:
        self.count += 1 if size is None else size
        return self._generator.random(size)

    def randint(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        first, last = (0, low) if high is None else (low, high)
        return (first + np.floor((last - first) * self.rand(size))).astype(np.int64)


class Twins:
    """The package's environments, and what draws the same numbers for a batch, row by row."""

    def __init__(self, name: str, count: int, **options: Any) -> None:
        self.theirs = [Environment(MODULES[name], **options) for _ in range(count)]
        self.their_draws = [SharedDraws(seed) for seed in range(count)]
        self.our_draws = [SharedDraws(seed) for seed in range(count)]
        for environment, draws in zip(self.theirs, self.their_draws, strict=True):
            environment.random = environment.env.random = draws
            environment.reset()

    def draw(self, rows: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        return np.array([self.our_draws[row].rand(count) for row in rows]).reshape(len(rows), count)

    def act(self, action: NDArray[np.int64]) -> list[tuple[int, bool]]:
        return [environment.act(chosen) for environment, chosen in zip(self.theirs, action, strict=True)]

    def boards(self) -> NDArray[np.bool_]:
        return np.stack([environment.state().transpose(2, 0, 1) for environment in self.theirs])

    def drew_alike(self) -> bool:
        return [draws.count for draws in self.our_draws] == [draws.count for draws in self.their_draws]


def player(name: str) -> Callable[[State, int], NDArray[np.int64]]:
    """Act so that games go far: a paddle that follows the ball, a chicken that walks, a cannon that fires."""
    generator = np.random.default_rng(0)

    def act(state: State, count: int) -> NDArray[np.int64]:
        action = generator.integers(0, 6, count)
        often = generator.random(count) < 0.9
        if name == "Breakout":
            ahead = state["x"] + state["rightward"] - state["paddle"]
            return np.where(often, np.select([ahead < 0, ahead > 0], [LEFT, RIGHT], 0), action)
        if name == "Freeway":
            return np.where(often, UP, action)
        return np.where(action == UP, FIRE, action) if name == "SpaceInvaders" else action

    return act


@pytest.mark.parametrize(
    ("name", "steps", "ramping", "immortal"),
    [
        ("Asterix", 800, True, False),
        ("Asterix", 1_300, True, True),
        ("Asterix", 1_300, False, True),
        ("Breakout", 1_500, True, False),
        ("Freeway", 2_600, True, False),
        ("SpaceInvaders", 500, True, False),
        ("SpaceInvaders", 2_500, True, True),
        ("SpaceInvaders", 900, False, True),
    ],
)
def test_a_batched_game_equals_the_package(name: str, steps: int, ramping: bool, immortal: bool) -> None:
    """Given the same draws. Immortal games go on after their end, until the ramp has come to its own."""
    count = 4
    twins = Twins(name, count, difficulty_ramping=ramping)
    game = BATCHED_GAMES[name](ramping)
    state = game.opening(np.arange(count), twins.draw)
    last = np.zeros(count, dtype=np.int64)
    choose = player(name)
    rewards, ends = np.zeros(count), 0
    for _ in range(steps):
        action = choose(state, count)
        last = np.where(twins.draw(np.arange(count), 1)[:, 0] < 0.1, last, action)
        reward, over = game.step(state, last, twins.draw)
        assert [(int(r), bool(o)) for r, o in zip(reward, over, strict=True)] == twins.act(action)
        np.testing.assert_array_equal(game.show(state), twins.boards())
        assert twins.drew_alike()
        rewards += reward
        ends += int(over.sum())
        for row in np.flatnonzero(over):
            if immortal:
                twins.theirs[row].env.terminal = False
                continue
            twins.theirs[row].reset()
            for key, values in game.opening(np.array([row]), twins.draw).items():
                state[key][row] = values[0]
    assert rewards.max() > 0
    assert ends >= count
    if immortal:
        slowest, fastest = {"Asterix": (5, 1), "SpaceInvaders": (12, 6)}[name]
        assert state["move_every"].min() == (fastest if ramping else slowest)
        assert rewards.max() > 24 or name == "Asterix", "no wave of aliens was cleared"


@pytest.mark.parametrize("name", BATCHED_GAMES)
@pytest.mark.parametrize("version", ["v0", "v1"])
def test_the_suite_plays_as_the_package_does(name: str, version: str) -> None:
    """Sticky actions, resets and the set of actions included."""
    count = 3
    twins = Twins(name, count, sticky_action_prob=0.3)
    env: Any = make_env(f"MinAtar/{name}-{version}", count, seed=0, sticky_action_prob=0.3)
    env._draw = twins.draw
    env.reset()
    simulator = twins.theirs[0]
    actions = np.array(simulator.minimal_action_set() if version == "v1" else range(6))
    generator = np.random.default_rng(0)
    np.testing.assert_array_equal(env.observations["observation"], twins.boards())
    for _ in range(400):
        chosen = generator.integers(0, len(actions), count)
        step = env.advance(chosen)
        expected = twins.act(actions[chosen])
        assert [*zip(step.reward.tolist(), step.terminated.tolist(), strict=True)] == expected
        np.testing.assert_array_equal(step.observations["observation"], twins.boards())
        for row in np.flatnonzero(step.done):
            twins.theirs[row].reset()
        np.testing.assert_array_equal(env.observations["observation"], twins.boards())
        assert twins.drew_alike()


def test_seaquest_is_the_package() -> None:
    env: Any = make_env("MinAtar/Seaquest-v1", 2, seed=0, difficulty_ramping=False)
    env.reset()
    theirs = [copy.deepcopy(simulator) for simulator in env._simulators]
    generator = np.random.default_rng(0)
    for _ in range(300):
        chosen = generator.integers(0, 6, 2)
        step = env.advance(chosen)
        for row, simulator in enumerate(theirs):
            assert not simulator.env.ramping
            assert simulator.act(chosen[row]) == (step.reward[row], step.terminated[row])
            board = step.observations["observation"][row]
            np.testing.assert_array_equal(board, simulator.state().transpose(2, 0, 1))
            if step.done[row]:
                simulator.reset()


@pytest.mark.parametrize("env_id", sorted(set(minatar_games()) - {"MinAtar/Stream-v0"}))
def test_specs(env_id: str) -> None:
    env = make_env(env_id, 3, seed=0, render=True)
    check_env_specs(env)
    name, version = env_id.removeprefix("MinAtar/").split("-")
    simulator = Environment(MODULES[name])
    actions = len(simulator.minimal_action_set()) if version == "v1" else 6
    channels = simulator.state_shape()[2]
    expected = EnvSpec(env_id, (channels, 10, 10), "bool", actions, None, None, 1, max_episode_steps=10_000)
    assert EnvSpec.from_env(env) == expected
    assert human_normalized_score(env_id, 1.0) is None


def play(env: Any, steps: int) -> list[NDArray[Any]]:
    """Return what an environment shows and pays under the same actions every time."""
    generator = np.random.default_rng(0)
    seen = [env.observations["observation"]]
    for _ in range(steps):
        step = env.advance(generator.integers(0, env.action_spec.space.n, env.num_envs))
        seen += [step.observations["observation"], step.reward, step.done, env.observations["observation"]]
    return seen


@pytest.mark.parametrize("env_id", IDS)
def test_a_seed_decides_everything(env_id: str) -> None:
    env: Any = make_env(env_id, 3, seed=0, sticky_action_prob=0.9)
    runs = []
    for seed in (5, 6, 5):
        env.set_seed(seed)
        env.reset()
        runs.append(np.concatenate([values.ravel() for values in play(env, 200)]))
    np.testing.assert_array_equal(runs[0], runs[2])
    assert (runs[0] != runs[1]).any()


@pytest.mark.parametrize("env_id", BATCHED)
def test_state_and_generator_are_all_that_a_game_remembers(env_id: str) -> None:
    env: Any = make_env(env_id, 4, seed=0)
    env.reset()
    play(env, 120)
    state, generator = copy.deepcopy(env._state), copy.deepcopy(env._generator)
    assert {type(values) for values in state.values()} == {np.ndarray}
    expected = play(env, 120)[1:]

    other: Any = make_env(env_id, 4, seed=1)
    other.reset()
    play(other, 7)
    other._state, other._generator = state, generator

    for mine, others in zip(expected, play(other, 120)[1:], strict=True):
        np.testing.assert_array_equal(mine, others)


@pytest.mark.parametrize("env_id", IDS)
def test_what_was_shown_is_not_written_to_later(env_id: str) -> None:
    env: Any = make_env(env_id, 2, seed=0)
    env.reset()
    seen = play(env, 20)
    before = [values.copy() for values in seen]
    play(env, 20)
    for old, now in zip(before, seen, strict=True):
        np.testing.assert_array_equal(old, now)


@pytest.mark.parametrize("env_id", IDS)
def test_a_limit_truncates(env_id: str) -> None:
    env: Any = make_env(env_id, 2, seed=0, max_episode_steps=4)
    env.reset()
    for _ in range(3):
        steps = [env.advance(np.zeros(2, dtype=np.int64)) for _ in range(4)]
        assert not any(step.done.any() for step in steps[:-1])
        assert steps[-1].truncated.all()
        assert not steps[-1].terminated.any()
        assert steps[-1].episode_length.tolist() == [4, 4]


def test_without_a_limit_games_have_none() -> None:
    assert complete_options("MinAtar/Breakout-v1", {}) == {
        "sticky_action_prob": 0.1,
        "difficulty_ramping": True,
        "max_episode_steps": 10_000,
    }
    env: Any = make_env("MinAtar/SpaceInvaders-v1", 1, seed=0, max_episode_steps=None)
    env.reset()
    env._state["steps"][:] = 10**9
    assert not env.advance(np.zeros(1, dtype=np.int64)).truncated.any()


def test_an_action_that_always_sticks_is_the_first_one() -> None:
    env: Any = make_env("MinAtar/Breakout-v1", 1, seed=0, sticky_action_prob=1.0)
    env.reset()
    env.advance(np.array([1]))
    assert env._state["paddle"] == 4
    env = make_env("MinAtar/Breakout-v1", 1, seed=0, sticky_action_prob=0.0)
    env.reset()
    env.advance(np.array([1]))
    assert env._state["paddle"] == 3


def test_pictures_have_a_color_for_each_channel() -> None:
    env: Any = make_env("MinAtar/Breakout-v1", 2, seed=0, render=True)
    env.reset()
    for _ in range(3):
        step = env.advance(np.zeros(2, dtype=np.int64))
    pixels, board = (torch.from_numpy(step.observations[key]) for key in ("pixels", "observation"))
    assert pixels.shape == (2, 160, 160, 3)
    cells = pixels[:, ::16, ::16]
    assert torch.equal(cells.repeat_interleave(16, 1).repeat_interleave(16, 2), pixels)
    assert torch.equal(cells.any(-1), board.any(1))
    colors = {tuple(cells[0][board[0, channel]][0].tolist()) for channel in range(4)}
    assert len(colors) == 4


@pytest.mark.parametrize(
    ("env_id", "suggestion"),
    [
        ("MinAtar/Breakot-v1", "MinAtar/Breakout-v1"),
        ("MinAtar/space_invaders-v1", "MinAtar/SpaceInvaders-v1"),
        ("minatar/seaquest-v1", "MinAtar/Seaquest-v1"),
        ("MinAtar/Freeway", "MinAtar/Freeway-v1"),
    ],
)
def test_unknown_games_name_the_nearest(env_id: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=f"unknown environment.*did you mean.*'{suggestion}'"):
        make_env(env_id)


@pytest.mark.parametrize("env_id", ["MinAtar/Breakout-v1", "MinAtar/Seaquest-v1"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sticky_action_prob": 1.5}, "sticky_action_prob is 1.5; expected a number between 0 and 1"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0; expected a whole number of at least 1"),
        ({"sticky_actions": 0.1}, "no option 'sticky_actions'; .*; did you mean 'sticky_action_prob'"),
    ],
)
def test_wrong_options(env_id: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_env(env_id, **options)


def test_an_action_that_does_not_exist() -> None:
    env: Any = make_env("MinAtar/Breakout-v1", 2, seed=0)
    env.reset()
    with pytest.raises(Exception, match="actions go from 0 to 3; there are 3"):
        env.advance(np.array([0, 3]))


def test_seaquest_without_the_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minatar", None)

    with pytest.raises(
        UserError, match=r"needs the package minatar .*; run: pip install 'lit-gfs\[minatar\]'"
    ):
        make_env("MinAtar/Seaquest-v1")


def test_the_other_games_do_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("lit_gfs.envs.minatar")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "minatar", None)

    for env_id in BATCHED:
        make_env(env_id).reset()
