"""MinAtar's games in tensors against the ``minatar`` package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from minatar import Environment
from torch import Tensor
from torch.utils._pytree import tree_map

from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.make import complete_options
from lit_gfs.envs.minatar.game import DOWN, FIRE, LEFT, RIGHT, UP
from lit_gfs.envs.minatar.pictures import pictures
from lit_gfs.envs.tensor.minatar import GAMES
from lit_gfs.errors import UserError

MODULES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}


class GivenDraws:
    """Numbers in [0, 1) that were drawn beforehand, read as the package reads its generator."""

    def __init__(self) -> None:
        self.numbers = np.zeros(0)
        self.position = 0

    def rand(self, size: int | None = None) -> Any:
        begin, self.position = self.position, self.position + (size or 1)
        drawn = self.numbers[begin : self.position]
        assert len(drawn) == (size or 1), "the package draws more numbers than there are"
        return drawn if size else drawn[0]

    def randint(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        first, last = (0, low) if high is None else (low, high)
        return (first + np.floor((last - first) * self.rand(size))).astype(np.int64)


class Twin:
    """An environment of the package that reads the draws of one environment in tensors."""

    def __init__(self, name: str, **options: Any) -> None:
        self.simulator = Environment(MODULES[name], **options)
        self.draws = self.simulator.random = self.simulator.env.random = GivenDraws()
        self.opening_at = 1 + GAMES[name].step_draws
        if name == "Seaquest":
            # Whether an enemy comes in, the numbers for a diver are the same.
            self._reads_from("_spawn_enemy", 1)
            self._reads_from("_spawn_diver", 4)

    def _reads_from(self, method: str, position: int) -> None:
        game, spawn = self.simulator.env, getattr(self.simulator.env, method)

        def spawn_there() -> None:
            self.draws.position = position
            spawn()

        setattr(game, method, spawn_there)

    def act(self, action: int, numbers: np.ndarray) -> tuple[int, bool]:
        self.draws.numbers, self.draws.position = numbers, 0
        return self.simulator.act(action)

    def reset(self, numbers: np.ndarray) -> None:
        self.draws.numbers, self.draws.position = numbers, self.opening_at
        self.simulator.reset()

    def board(self) -> np.ndarray:
        return self.simulator.state().transpose(2, 0, 1)


def twins(env: Any, name: str, **options: Any) -> tuple[list[Twin], list[Tensor]]:
    """Reset an environment, and as many of the package with the same draws; list all further draws."""
    drawn: list[Tensor] = []
    draw = env._draw

    def kept_draw() -> Tensor:
        drawn.append(draw())
        return drawn[-1]

    env._draw = kept_draw
    env.reset()
    theirs = [Twin(name, **options) for _ in range(env.num_envs)]
    for twin, numbers in zip(theirs, drawn[-1].numpy(), strict=True):
        twin.reset(numbers)
    return theirs, drawn


def boards(theirs: list[Twin]) -> Tensor:
    return torch.from_numpy(np.stack([twin.board() for twin in theirs]))


def player(name: str) -> Callable[[Any, int], Tensor]:
    """Act so that games go far: a paddle follows the ball, a chicken walks, a cannon and a submarine fire."""
    generator = torch.Generator().manual_seed(0)

    def act(state: Any, count: int) -> Tensor:
        action = torch.randint(6, (count,), generator=generator)
        often = torch.rand(count, generator=generator) < 0.9
        if name == "Breakout":
            ahead = state.x + state.rightward - state.paddle
            follow = torch.where(ahead < 0, LEFT, 0) + torch.where(ahead > 0, RIGHT, 0)
            return torch.where(often, follow, action)
        if name == "Freeway":
            return torch.where(often, UP, action)
        if name == "SpaceInvaders":
            return torch.where(action == UP, FIRE, action)
        if name == "Seaquest":
            # Away from the surface, and up only with divers; half of the time fire.
            action = torch.where((state.y <= 1) & (state.carried < 1) & (action == UP), DOWN, action)
            return torch.where(often & (action <= RIGHT) & (state.shoot_in == 0), FIRE, action)
        return action

    return act


@pytest.mark.parametrize(
    ("name", "version", "ramping", "steps"),
    [
        ("Asterix", "v0", False, 300),
        ("Asterix", "v1", True, 500),
        ("Breakout", "v0", False, 300),
        ("Breakout", "v1", True, 1_000),
        ("Freeway", "v1", True, 2_600),
        ("Seaquest", "v0", False, 300),
        ("Seaquest", "v1", True, 600),
        ("SpaceInvaders", "v0", False, 300),
        ("SpaceInvaders", "v1", True, 500),
    ],
)
def test_every_step_is_the_packages(name: str, version: str, ramping: bool, steps: int) -> None:
    """Rewards, ends, boards, sticky actions and resets, for the same draws."""
    count = 8
    options = {"sticky_action_prob": 0.3, "difficulty_ramping": ramping}
    env: Any = make_env(f"tensor/MinAtar/{name}-{version}", count, seed=0, **options)
    theirs, drawn = twins(env, name, **options)
    minimal = theirs[0].simulator.minimal_action_set() if version == "v1" else list(range(6))
    choose = player(name)
    rewards, ends = 0.0, 0
    assert torch.equal(env.observations["observation"], boards(theirs))
    for _ in range(steps):
        wanted = choose(env._episodes.game, count)
        action = torch.tensor([minimal.index(each) if each in minimal else 0 for each in wanted.tolist()])
        step = env.advance(action)
        numbers = drawn[-1].numpy()
        expected = [
            twin.act(minimal[chosen], row)
            for twin, chosen, row in zip(theirs, action.tolist(), numbers, strict=True)
        ]
        assert [*zip(step.reward.tolist(), step.terminated.tolist(), strict=True)] == expected
        assert torch.equal(step.observation, boards(theirs))
        for index in step.done.nonzero().flatten().tolist():
            theirs[index].reset(numbers[index])
        assert torch.equal(env.observations["observation"], boards(theirs))
        rewards += float(step.reward.sum())
        ends += int(step.done.sum())
    assert rewards > 0
    assert ends >= count


@pytest.mark.parametrize(
    ("name", "steps", "ramping"),
    [
        ("Asterix", 1_300, True),
        ("Asterix", 300, False),
        ("SpaceInvaders", 2_500, True),
        ("SpaceInvaders", 900, False),
        ("Seaquest", 1_800, True),
        ("Seaquest", 400, False),
    ],
)
def test_games_that_go_on_after_their_end_ramp_as_the_packages(name: str, steps: int, ramping: bool) -> None:
    """Until the ramp has come to its own end, with all that is on the board by then."""
    count = 6
    env: Any = make_env(f"tensor/MinAtar/{name}-v0", count, seed=0, difficulty_ramping=ramping)
    theirs, _ = twins(env, name, difficulty_ramping=ramping, sticky_action_prob=0.0)
    game, state, choose = env._game, env._episodes.game, player(name)
    generator = torch.Generator().manual_seed(1)
    rewards, busiest, ends = torch.zeros(count), 0, 0
    for time in range(steps):
        action = choose(state, count)
        if name == "Seaquest" and time % 40 == 20:
            # Divers on board, up to all six, so that surfacing raises the difficulty and pays.
            carried = torch.randint(1, 7, (count,), generator=generator)
            state = state._replace(carried=carried)
            for twin, divers in zip(theirs, carried.tolist(), strict=True):
                twin.simulator.env.diver_count = divers
        if name == "Seaquest" and time % 40 > 25:
            action = torch.full_like(action, UP if time % 40 < 35 else DOWN)
        numbers = torch.rand(count, 1 + game.step_draws, dtype=torch.float64, generator=generator)
        state, reward, over = game.step(state, action, numbers[:, 1:])
        for index, twin in enumerate(theirs):
            expected = twin.act(int(action[index]), numbers[index].numpy())
            assert (int(reward[index]), bool(over[index])) == expected
            twin.simulator.env.terminal = False
        assert torch.equal(game.show(state), boards(theirs))
        rewards += reward
        ends += int(over.sum())
        if name == "Seaquest":
            busiest = max(busiest, int(state.enemies.there.sum(1).max()))
    assert ends > 0
    slowest, fastest = {"Asterix": (5, 1), "SpaceInvaders": (12, 6), "Seaquest": (5, 2)}[name]
    assert state.move_every.min() == (fastest if ramping else slowest)
    if name != "SpaceInvaders":
        every = state.spawn_every if name == "Asterix" else state.enemy_every
        begins = 10 if name == "Asterix" else 20
        assert every.min() == (1 if ramping else begins)
    else:
        assert rewards.max() > 24, "no wave of aliens was cleared"
    if name == "Seaquest":
        assert busiest >= (10 if ramping else 2)


def in_places(objects: list[list[int]], places: int) -> list[Tensor]:
    """Turn a list of objects, the newest last, into one row of each field, the newest first."""
    rows = objects[::-1] + [[0] * len(objects[0])] * (places - len(objects))
    return [torch.tensor(field) for field in zip(*rows, strict=True)]


def crowd(sea: Any, twin: Any, generator: np.random.Generator) -> Any:
    """Fill one board of both with objects in a few cells, in which they meet, and the player among them."""

    def numbers(*most: int) -> list[int]:
        return [int(generator.integers(0, limit)) for limit in most]

    twin.sub_x, twin.sub_y, twin.diver_count, twin.oxygen = 4, 2, int(generator.integers(-1, 7)), 77
    twin.surface, twin.move_speed, twin.shot_timer = False, 3, 5
    # Column, row, direction, wait, whether it shoots, wait for the next shot.
    enemies = [
        [3 + c, 2 + r, d, w, is_sub, s]
        for c, r, d, w, is_sub, s in (numbers(4, 3, 2, 2, 2, 2) for _ in range(20))
    ]
    twin.e_subs = [[c, r, bool(d), w, s] for c, r, d, w, is_sub, s in enemies if is_sub]
    twin.e_fish = [[c, r, bool(d), w] for c, r, d, w, is_sub, _ in enemies if not is_sub]
    bullets = [[2 + c, row, d] for row, (c, d) in enumerate((numbers(6, 2) for _ in range(2)), start=3)]
    twin.f_bullets = [[c, r, bool(d)] for c, r, d in bullets]
    divers = [[3 + c, 2, int(d), w] for d, (c, w) in enumerate(numbers(3, 2) for _ in range(2))]
    twin.divers = [[c, r, bool(d), w] for c, r, d, w in divers]
    shots = [[c, 2, d] for c, d in (numbers(10, 2) for _ in range(1))]
    twin.e_bullets = [[c, r, bool(d)] for c, r, d in shots]

    x, y, right, wait, is_sub, shoot_in = in_places(enemies, 32)
    there = torch.arange(32) < len(enemies)
    bullet_x, bullet_y, bullet_right = in_places(bullets, 2)
    diver_x, diver_y, diver_right, diver_wait = in_places(divers, 3)
    shots_right, shots_left = torch.zeros(2, 10, 10, dtype=torch.bool)
    for column, row, goes_right in shots:
        (shots_right if goes_right else shots_left)[row, column] = True
    return sea._replace(
        x=torch.tensor(4),
        y=torch.tensor(2),
        bullets=type(sea.bullets)(torch.ones(2, dtype=torch.bool), bullet_x, bullet_y, bullet_right.bool()),
        divers=type(sea.divers)(torch.arange(3) < 2, diver_x, diver_y, diver_right.bool(), diver_wait),
        enemies=type(sea.enemies)(there, x, y, right.bool(), wait, is_sub.bool(), shoot_in),
        shots_right=shots_right,
        shots_left=shots_left,
        carried=torch.tensor(twin.diver_count),
        oxygen=torch.tensor(77),
        shoot_in=torch.tensor(5),
        at_surface=torch.tensor(False),
        move_every=torch.tensor(3),
    )


def test_in_a_crowded_sea_the_same_objects_are_hit() -> None:
    """Several objects in one cell are rare in a game: here they are everywhere."""
    count = 300
    env: Any = make_env("tensor/MinAtar/Seaquest-v1", count, seed=0)
    theirs, _ = twins(env, "Seaquest", sticky_action_prob=0.0)
    generator = np.random.default_rng(0)
    game = env._game
    one: Any = tree_map(lambda value: value[0], env._episodes.game)
    seas = [crowd(one, twin.simulator.env, generator) for twin in theirs]
    state: Any = tree_map(lambda *values: torch.stack(values), *seas)
    assert torch.equal(game.show(state), boards(theirs))
    for _ in range(4):
        action = torch.from_numpy(generator.integers(0, 6, count))
        numbers = torch.from_numpy(generator.random((count, 6)))
        state, reward, over = game.step(state, action, numbers[:, 1:])
        expected = [
            twin.act(chosen, row)
            for twin, chosen, row in zip(theirs, action.tolist(), numbers.numpy(), strict=True)
        ]
        assert [*zip(reward.tolist(), over.tolist(), strict=True)] == expected
        assert torch.equal(game.show(state), boards(theirs))
        assert state.carried.tolist() == [twin.simulator.env.diver_count for twin in theirs]
        for twin in theirs:
            twin.simulator.env.terminal = False


def test_the_sea_has_a_place_for_every_enemy_that_may_come_in() -> None:
    """At the end of the ramp, if all of them are let in: one that leaves its place is gone."""
    game = GAMES["Seaquest"](True)
    state: Any = game.opening(torch.zeros(1, 0))
    one = torch.ones(1, dtype=torch.int64)
    state = state._replace(enemy_every=one, enemy_in=0 * one, move_every=2 * one, carried=6 * one)
    draws = torch.tensor([[0.1, 0.9, 0.3, 0.9, 0.99]], dtype=torch.float64)  # fish, all in one lane
    counts = []
    for _ in range(100):
        before = state.enemies.there
        state, *_ = game.step(state._replace(oxygen=200 * one), 0 * one, draws)
        counts.append(int(state.enemies.there.sum()))
        assert not before[0, -1]
    assert max(counts) == counts[-1] == 29


def test_an_action_that_always_sticks_is_the_first_one() -> None:
    for probability, paddle in ((1.0, 4), (0.0, 3)):
        env: Any = make_env("tensor/MinAtar/Breakout-v1", 1, seed=0, sticky_action_prob=probability)
        env.reset()
        env.advance(torch.tensor([1]))
        assert env._episodes.game.paddle.tolist() == [paddle]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("version", ["v0", "v1"])
def test_spaces_and_options_are_those_of_the_twin(name: str, version: str) -> None:
    env_id = f"MinAtar/{name}-{version}"
    ours, twin = (EnvSpec.from_env(make_env(prefix + env_id, 3)) for prefix in ("tensor/", ""))
    assert vars(ours) == {**vars(twin), "env_id": f"tensor/{env_id}"}
    assert complete_options(f"tensor/{env_id}", {}) == complete_options(env_id, {})


def test_pictures_are_those_of_the_twin() -> None:
    ours, twin = (make_env(f"{prefix}MinAtar/Freeway-v1", 2, render=True) for prefix in ("tensor/", ""))
    ours.reset()
    twin.reset()
    pixels = ours.observations["pixels"]  # type: ignore[attr-defined]
    assert pixels.shape == twin.observations["pixels"].shape  # type: ignore[attr-defined]
    board = ours.observations["observation"]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(pixels.numpy(), pictures(board.numpy()))


@pytest.mark.parametrize(
    ("env_id", "suggestion"),
    [
        ("tensor/MinAtar/Breakot-v1", "tensor/MinAtar/Breakout-v1"),
        ("tensor/Breakout-v1", "tensor/MinAtar/Breakout-v1"),
        ("tensor/minatar/space_invaders-v1", "tensor/MinAtar/SpaceInvaders-v1"),
    ],
)
def test_unknown_games_name_the_nearest(env_id: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=f"unknown environment.*did you mean.*'{suggestion}'"):
        make_env(env_id)


def test_wrong_options() -> None:
    with pytest.raises(UserError, match=r"sticky_action_prob is 1.5; expected a number between 0 and 1"):
        make_env("tensor/MinAtar/Breakout-v1", sticky_action_prob=1.5)
