"""MinAtar's Seaquest in tensors.

The package keeps lists of objects. Here each kind of object has a fixed number of places, in which the newest
is first: a new object moves all others on by one place. There are as many places as objects of the kind may
come in while one of them is alive, so the object that would be moved out of the last place is gone already.
The order decides which one of several objects in a cell is hit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_gfs.envs.minatar.game import DOWN, FIRE, LEFT, RIGHT, SIZE, STAY, UP
from lit_gfs.envs.tensor.boards import (
    BoardGame,
    anywhere,
    cell,
    cells,
    downward,
    is_on_board,
    lines,
    rightward,
    sign,
)
from lit_gfs.envs.tensor.game import State, choose, whole

_OXYGEN = 200
_DIVERS_CARRIED = 6
_SPAWN_EVERY = 20
_DIVER_EVERY = 30
_MOVE_EVERY = 5
_DIVERS_MOVE_EVERY = 5
_FASTEST = 2
"""Fewest steps that an enemy waits between moves, where the ramp ends."""
_SHOOT_EVERY = 5
_ENEMIES_SHOOT_EVERY = 10

_BULLETS = 2
"""Places for bullets: one comes in five steps, and leaves the board in nine."""
_DIVERS = 3
"""Places for divers: one comes in 30 steps, and leaves the board in 60."""
_ENEMIES = 32
"""Places for enemies: at the end of the ramp, one comes in each step, and leaves the board in 30."""


class Bullets(NamedTuple):
    """The submarine's bullets, ``(num_envs, 2)`` each."""

    there: Tensor
    x: Tensor
    y: Tensor
    right: Tensor
    """Whether they go to the right."""


class Divers(NamedTuple):
    """Divers, ``(num_envs, 3)`` each."""

    there: Tensor
    x: Tensor
    y: Tensor
    right: Tensor
    wait: Tensor
    """Steps before a diver moves again."""


class Enemies(NamedTuple):
    """Fish and submarines, ``(num_envs, 32)`` each."""

    there: Tensor
    x: Tensor
    y: Tensor
    right: Tensor
    wait: Tensor
    """Steps before an enemy moves again."""
    is_sub: Tensor
    """Whether it is a submarine; the others are fish, and do not shoot."""
    shoot_in: Tensor


class Sea(NamedTuple):
    """The state of every game; ``(num_envs,)`` int64 where nothing else is said."""

    x: Tensor
    y: Tensor
    right: Tensor
    """Whether the submarine looks to the right, bool."""
    bullets: Bullets
    divers: Divers
    enemies: Enemies
    shots_right: Tensor
    """Cells with an enemy's bullet that goes to the right, bool ``(num_envs, 10, 10)``."""
    shots_left: Tensor
    oxygen: Tensor
    carried: Tensor
    """Divers on board."""
    at_surface: Tensor
    """Whether the submarine has surfaced and not dived since, bool."""
    shoot_in: Tensor
    enemy_in: Tensor
    diver_in: Tensor
    enemy_every: Tensor
    move_every: Tensor
    ramps: Tensor


class Seaquest(BoardGame[Sea]):
    """Save divers from enemies under water, and shoot these, before the oxygen is used up.

    An enemy that is hit has a reward of 1, and so has each full tenth of oxygen that is left when the player
    surfaces with six divers. The game ends when an enemy or its bullet meets the submarine, without
    oxygen, and on surfacing without a diver. The ramp makes more enemies come in, and move faster, with each
    surfacing.
    """

    channels = 10
    minimal_actions = (STAY, LEFT, UP, RIGHT, DOWN, FIRE)
    step_draws = 5

    def opening(self, draws: Tensor) -> Sea:
        """Begin at the surface of an empty sea."""
        zero = torch.zeros(len(draws), dtype=torch.int64, device=draws.device)
        no = zero.bool()
        empty = torch.zeros(len(draws), SIZE, SIZE, dtype=torch.bool, device=draws.device)

        def places(count: int) -> tuple[Tensor, Tensor]:
            return no[:, None].expand(-1, count), zero[:, None].expand(-1, count)

        nobody, nothing = places(_ENEMIES)
        no_diver, no_number = places(_DIVERS)
        no_bullet, no_place = places(_BULLETS)
        return Sea(
            x=zero + 5,
            y=zero,
            right=no,
            bullets=Bullets(no_bullet, no_place, no_place, no_bullet),
            divers=Divers(no_diver, no_number, no_number, no_diver, no_number),
            enemies=Enemies(nobody, nothing, nothing, nobody, nothing, nobody, nothing),
            shots_right=empty,
            shots_left=empty,
            oxygen=zero + _OXYGEN,
            carried=zero,
            at_surface=~no,
            shoot_in=zero,
            enemy_in=zero + _SPAWN_EVERY,
            diver_in=zero + _DIVER_EVERY,
            enemy_every=zero + _SPAWN_EVERY,
            move_every=zero + _MOVE_EVERY,
            ramps=zero,
        )

    def step(self, state: Sea, action: Tensor, draws: Tensor) -> tuple[Sea, Tensor, Tensor]:
        """Let objects come in, let the player act, then move everything else and count what is hit."""
        state = _dive(_spawn_diver(_spawn_enemy(state, draws[:, :3]), draws[:, 3:]), action)
        state, reward = _move_bullets(state)
        state = _move_divers(state)
        shooters = state.enemies
        state, hits, met = _move_enemies(state)
        state, shot = _shoot(state, shooters)
        over = met | shot | (state.oxygen <= 0)
        state, saved, empty_handed = _breathe(state, self.ramping)
        return state, reward + hits + saved, over | empty_handed

    def show(self, state: Sea) -> Tensor:
        """Show the submarine, bullets, enemies, gauges in the last row, divers, and trails behind objects."""
        bullets, divers, enemies = state.bullets, state.divers, state.enemies
        bottom = (lines(state.x) == SIZE - 1)[:, None]
        at = lines(state.x)
        oxygen = at < (state.oxygen.clamp(min=0) * 10 // _OXYGEN)[:, None]
        carried = (at >= (SIZE - 1 - state.carried)[:, None]) & (at < SIZE - 1)
        trails = [cells(each.y, each.x - sign(each.right), each.there) for each in (enemies, divers)]
        return torch.stack(
            [
                cell(state.y, state.x),
                cell(state.y, state.x - sign(state.right)),
                cells(bullets.y, bullets.x, bullets.there),
                trails[0] | trails[1],
                state.shots_right | state.shots_left,
                cells(enemies.y, enemies.x, enemies.there & ~enemies.is_sub),
                cells(enemies.y, enemies.x, enemies.there & enemies.is_sub),
                bottom & oxygen[:, None],
                bottom & carried[:, None],
                cells(divers.y, divers.x, divers.there),
            ],
            1,
        )


# -- objects ---------------------------------------------------------------------------------------------


def _enter(objects: State, where: Tensor, *fields: Tensor) -> State:
    """Put a new object in the first place, on some boards.

    Args:
        objects: Those that are there.
        where: The boards, ``(num_envs,)``.
        fields: The new object, ``(num_envs,)`` each.
    """
    moved_on = (torch.cat([new[:, None], old[:, :-1]], 1) for new, old in zip(fields, objects, strict=True))
    return choose(where, type(objects)(*moved_on), objects)


def _start(from_left: Tensor) -> Tensor:
    """Return the column in which objects come in."""
    return torch.where(from_left, 0, SIZE - 1)


def _at_player(state: Sea, objects: Bullets | Divers | Enemies) -> Tensor:
    """Say which objects are where the player is, ``(num_envs, places)``."""
    return objects.there & (objects.x == state.x[:, None]) & (objects.y == state.y[:, None])


def _first(candidates: Tensor) -> Tensor:
    """Keep only the first place that is marked, along the last axis."""
    return candidates & (candidates.cumsum(-1) == 1)


def _last(candidates: Tensor) -> Tensor:
    """Keep only the last place that is marked, along the last axis."""
    return _first(candidates.flip(-1)).flip(-1)


def _spawn_enemy(state: Sea, draws: Tensor) -> Sea:
    """Let an enemy come in where it is due, unless its lane has enemies that go the other way."""
    due = state.enemy_in == 0
    right, is_sub, y = draws[:, 0] < 1 / 2, draws[:, 1] < 1 / 3, whole(draws[:, 2], 1, SIZE - 1)
    enemies = state.enemies
    against = enemies.there & (enemies.y == y[:, None]) & (enemies.right != right[:, None])
    shoot_in = torch.full_like(y, _ENEMIES_SHOOT_EVERY)
    new = torch.ones_like(right), _start(right), y, right, state.move_every, is_sub, shoot_in
    return state._replace(
        enemies=_enter(enemies, due & ~against.any(1), *new),
        enemy_in=torch.where(due, state.enemy_every, state.enemy_in),
    )


def _spawn_diver(state: Sea, draws: Tensor) -> Sea:
    """Let a diver come in where it is due."""
    due = state.diver_in == 0
    right, y = draws[:, 0] < 1 / 2, whole(draws[:, 1], 1, SIZE - 1)
    new = torch.ones_like(right), _start(right), y, right, torch.full_like(y, _DIVERS_MOVE_EVERY)
    return state._replace(
        divers=_enter(state.divers, due, *new), diver_in=torch.where(due, _DIVER_EVERY, state.diver_in)
    )


# -- the order of a step ---------------------------------------------------------------------------------


def _dive(state: Sea, action: Tensor) -> Sea:
    """Let the player move, turn or fire."""
    fires = (action == FIRE) & (state.shoot_in == 0)
    new = fires, state.x, state.y, state.right
    sideways = rightward(action)
    return state._replace(
        bullets=_enter(state.bullets, fires, *new),
        shoot_in=torch.where(fires, _SHOOT_EVERY, state.shoot_in),
        x=(state.x + sideways).clamp(0, SIZE - 1),
        y=(state.y + downward(action)).clamp(0, SIZE - 2),
        right=torch.where(sideways == 0, state.right, sideways > 0),
    )


def _move_bullets(state: Sea) -> tuple[Sea, Tensor]:
    """Move the player's bullets: each hits the oldest fish in its cell or, without one, the oldest sub."""
    bullets, enemies = state.bullets, state.enemies
    x = bullets.x + sign(bullets.right)
    bullets = bullets._replace(x=x, there=bullets.there & is_on_board(x))
    meets = _meets(bullets, enemies)
    is_fish = ~enemies.is_sub[:, None]
    fish = _last(meets & is_fish)
    hit = torch.where(fish.any(2, keepdim=True), fish, _last(meets & ~is_fish))
    return _removed(state._replace(bullets=bullets), hit)


def _meets(bullets: Bullets, enemies: Enemies) -> Tensor:
    """Say which bullet is in the cell of which enemy, ``(num_envs, bullets, enemies)``."""
    there = bullets.there[:, :, None] & enemies.there[:, None]
    same_row = bullets.y[:, :, None] == enemies.y[:, None]
    return there & same_row & (bullets.x[:, :, None] == enemies.x[:, None])


def _removed(state: Sea, hit: Tensor) -> tuple[Sea, Tensor]:
    """Remove bullets and the enemies that they hit, ``(num_envs, bullets, enemies)``; count the hits."""
    bullets, enemies = state.bullets, state.enemies
    state = state._replace(
        bullets=bullets._replace(there=bullets.there & ~hit.any(2)),
        enemies=enemies._replace(there=enemies.there & ~hit.any(1)),
    )
    return state, hit.flatten(1).sum(1)


def _move_divers(state: Sea) -> Sea:
    """Take divers on board, as many as there is room for and the newest first; move the others."""
    divers, carried = state.divers, state.carried
    here = _at_player(state, divers)
    moves = divers.wait == 0
    moved = divers._replace(x=divers.x + moves * sign(divers.right))
    there_now = _at_player(state, moved)
    left = []
    for place in range(_DIVERS):
        boards = divers.there[:, place]
        boarded = here[:, place] & (carried < _DIVERS_CARRIED)
        carried = carried + boarded.long()
        boarded_now = ~boarded & moves[:, place] & there_now[:, place] & (carried < _DIVERS_CARRIED)
        carried = carried + boarded_now.long()
        left.append(boards & ~boarded & ~boarded_now & is_on_board(moved.x[:, place]))
    return state._replace(
        divers=moved._replace(
            there=torch.stack(left, 1), wait=torch.where(moves, _DIVERS_MOVE_EVERY, divers.wait - 1)
        ),
        carried=carried,
    )


def _move_enemies(state: Sea) -> tuple[Sea, Tensor, Tensor]:
    """Move enemies; count those that move into a bullet, and say on which boards one meets the player.

    Of all that move into a bullet, it hits the newest submarine or, without one, the newest fish.
    """
    enemies = state.enemies
    met = _at_player(state, enemies).any(1)
    moves = enemies.there & (enemies.wait == 0)
    x = enemies.x + moves * sign(enemies.right)
    enemies = enemies._replace(
        x=x,
        there=enemies.there & is_on_board(x),
        wait=torch.where(moves, state.move_every[:, None], enemies.wait - 1),
    )
    at_player = _at_player(state, enemies)
    meets = _meets(state.bullets, enemies) & (moves & ~at_player)[:, None]
    is_sub = enemies.is_sub[:, None]
    subs = _first(meets & is_sub)
    hit = torch.where(subs.any(2, keepdim=True), subs, _first(meets & ~is_sub))
    state, hits = _removed(state._replace(enemies=enemies), hit)
    return state, hits, met | at_player.any(1)


def _shoot(state: Sea, before: Enemies) -> tuple[Sea, Tensor]:
    """Let submarines shoot, and move the bullets; say where one meets the player.

    Args:
        state: The state after enemies have moved.
        before: The enemies before that: those that have just been hit still shoot.
    """
    enemies = state.enemies
    fires = before.there & before.is_sub & (before.shoot_in == 0)
    right = state.shots_right | cells(enemies.y, enemies.x, fires & enemies.right)
    left = state.shots_left | cells(enemies.y, enemies.x, fires & ~enemies.right)
    player = cell(state.y, state.x)
    met = anywhere((right | left) & player)
    edge = torch.zeros_like(right[:, :, :1])
    right, left = torch.cat([edge, right[:, :, :-1]], 2), torch.cat([left[:, :, 1:], edge], 2)
    state = state._replace(
        enemies=enemies._replace(shoot_in=torch.where(fires, _ENEMIES_SHOOT_EVERY, enemies.shoot_in - 1)),
        shots_right=right,
        shots_left=left,
    )
    return state, met | anywhere((right | left) & player)


def _breathe(state: Sea, ramping: bool) -> tuple[Sea, Tensor, Tensor]:
    """Use oxygen or, on surfacing, leave divers and take oxygen in; count down to what is due.

    Returns:
        The state; the reward for surfacing with six divers; and where the player surfaces without a diver.
    """
    dives = state.y > 0
    arrives = ~dives & ~state.at_surface
    surfaces = arrives & (state.carried != 0)
    full = surfaces & (state.carried == _DIVERS_CARRIED)
    reward = torch.where(full, state.oxygen * 10 // _OXYGEN, 0)
    oxygen = torch.where(surfaces, _OXYGEN, state.oxygen - dives.long())
    # The package takes one more diver away than six, and then counts -1.
    carried = state.carried.masked_fill(full, 0) - surfaces.long()
    after = state._replace(
        oxygen=oxygen,
        carried=carried,
        at_surface=~dives & (state.at_surface | surfaces),
        shoot_in=(state.shoot_in - 1).clamp(min=0),
        enemy_in=(state.enemy_in - 1).clamp(min=0),
        diver_in=(state.diver_in - 1).clamp(min=0),
    )
    if ramping:
        after = _ramp(after, surfaces)
    return after, reward, arrives & ~surfaces


def _ramp(state: Sea, surfaces: Tensor) -> Sea:
    """Raise the difficulty with a surfacing: more enemies, and every second time faster ones."""
    can = surfaces & ((state.enemy_every > 1) | (state.move_every > _FASTEST))
    faster = can & (state.move_every > _FASTEST) & (state.ramps % 2 == 1)
    return state._replace(
        move_every=state.move_every - faster.long(),
        enemy_every=state.enemy_every - (can & (state.enemy_every > 1)).long(),
        ramps=state.ramps + can.long(),
    )
