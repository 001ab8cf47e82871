"""MinAtar's Space Invaders."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_gfs.envs.minatar.game import FIRE, LEFT, RIGHT, RIGHTWARD, SIZE, STAY, Draw, Game, State

_BOTTOM = SIZE - 1
_WAVE = (slice(0, 4), slice(2, 8))
"""Rows and columns of a new wave of aliens."""
_SHOOT_EVERY = 5
_ALIENS_SHOOT_EVERY = 10
_ALIENS_MOVE_EVERY = 12
_ALIENS_AT_THEIR_FASTEST = 6
"""Fewest steps between moves of a full wave, where the ramp ends."""


class SpaceInvaders(Game):
    """Shoot down waves of aliens, which shoot back: a reward of 1 for each.

    The game ends when a bullet or an alien reaches the cannon, or an alien reaches the bottom. The ramp makes
    each wave move a little faster than the one before. Nothing in this game is random.
    """

    channels = ("cannon", "alien", "alien_left", "alien_right", "friendly_bullet", "enemy_bullet")
    minimal_actions = (STAY, LEFT, RIGHT, FIRE)

    def opening(self, rows: NDArray[np.int64], draw: Draw) -> State:
        """Begin with a full wave that moves to the left."""

        def every(value: int) -> NDArray[np.int64]:
            return np.full(len(rows), value)

        empty = np.zeros((len(rows), SIZE, SIZE), dtype=np.bool_)
        aliens = empty.copy()
        aliens[:, *_WAVE] = True
        return {
            "x": every(5),
            "aliens": aliens,
            "bullets": empty,
            "alien_bullets": empty.copy(),
            "rightward": every(-1),
            "move_every": every(_ALIENS_MOVE_EVERY),
            "move_in": every(_ALIENS_MOVE_EVERY),
            "aliens_shoot_in": every(_ALIENS_SHOOT_EVERY),
            "shoot_in": every(0),
        }

    def step(
        self, state: State, action: NDArray[np.int64], draw: Draw
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Let the player act, then move bullets and aliens, and count the aliens that are hit."""
        boards = np.arange(len(action))
        fires = (action == FIRE) & (state["shoot_in"] == 0)
        state["shoot_in"][fires] = _SHOOT_EVERY
        state["x"] = x = np.clip(state["x"] + RIGHTWARD[action], 0, SIZE - 1)
        # A new bullet leaves the cannon's row in the step that fires it.
        bullets, alien_bullets = np.zeros_like(state["bullets"]), np.zeros_like(state["alien_bullets"])
        bullets[:, :-1] = state["bullets"][:, 1:]
        bullets[boards[fires], _BOTTOM - 1, x[fires]] = True
        alien_bullets[:, 1:] = state["alien_bullets"][:, :-1]
        over = alien_bullets[boards, _BOTTOM, x] | state["aliens"][boards, _BOTTOM, x]
        marching = np.flatnonzero(state["move_in"] == 0)
        if len(marching):
            over[marching] |= _march(state, marching)
        shooting = np.flatnonzero(state["aliens_shoot_in"] == 0)
        if len(shooting):
            state["aliens_shoot_in"][shooting] = _ALIENS_SHOOT_EVERY
            alien_bullets[shooting, *_nearest(state["aliens"][shooting], x[shooting])] = True
        hit = state["aliens"] & bullets
        state["aliens"] = aliens = state["aliens"] & ~hit
        state["bullets"], state["alien_bullets"] = bullets & ~hit, alien_bullets
        state["shoot_in"] = np.maximum(state["shoot_in"] - 1, 0)
        state["move_in"] -= 1
        state["aliens_shoot_in"] -= 1
        cleared = ~aliens.any(axis=(1, 2))
        if cleared.any():
            if self.ramping:
                state["move_every"] -= cleared & (state["move_every"] > _ALIENS_AT_THEIR_FASTEST)
            aliens[np.flatnonzero(cleared), *_WAVE] = True
        return hit.sum(axis=(1, 2)), over

    def show(self, state: State) -> NDArray[np.bool_]:
        """Show the cannon, aliens, aliens again in the channel of their direction, and all bullets."""
        grid = self.blank(state)
        boards = np.arange(len(grid))
        grid[boards, 0, _BOTTOM, state["x"]] = True
        grid[:, 1] = state["aliens"]
        grid[boards, np.where(state["rightward"] < 0, 2, 3)] = state["aliens"]
        grid[:, 4] = state["bullets"]
        grid[:, 5] = state["alien_bullets"]
        return grid


def _march(state: State, boards: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Move aliens sideways, or down and back at an edge, on some boards; say where the game is over."""
    aliens, rightward = state["aliens"][boards], state["rightward"][boards]
    # The fewer aliens are left, the sooner they move again.
    state["move_in"][boards] = np.minimum(aliens.sum(axis=(1, 2)), state["move_every"][boards])
    leftward = rightward < 0
    at_edge = np.where(leftward, aliens[:, :, 0].any(axis=1), aliens[:, :, -1].any(axis=1))
    landed = at_edge & aliens[:, _BOTTOM].any(axis=1)
    sideways = np.where(leftward[:, None, None], np.roll(aliens, -1, axis=2), np.roll(aliens, 1, axis=2))
    aliens = np.where(at_edge[:, None, None], np.roll(aliens, 1, axis=1), sideways)
    state["rightward"][boards] = np.where(at_edge, -rightward, rightward)
    state["aliens"][boards] = aliens
    return landed | aliens[np.arange(len(boards)), _BOTTOM, state["x"][boards]]


def _nearest(aliens: NDArray[np.bool_], x: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of the lowest alien in the column nearest to the cannon; of two, the left one."""
    distance = np.abs(np.arange(SIZE) - x[:, None])
    column = np.where(aliens.any(axis=1), distance, SIZE).argmin(axis=1)
    lowest = _BOTTOM - aliens[np.arange(len(x)), ::-1, column].argmax(axis=1)
    return lowest, column
