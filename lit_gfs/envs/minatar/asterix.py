"""MinAtar's Asterix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_gfs.envs.minatar.game import (
    DOWN,
    DOWNWARD,
    LEFT,
    RIGHT,
    RIGHTWARD,
    SIZE,
    STAY,
    UP,
    Draw,
    Game,
    State,
    whole,
)

_LANES = np.arange(1, SIZE - 1)
"""Rows in which something may come along, one thing in each."""
_SPAWN_EVERY = 10
_MOVE_EVERY = 5
_RAMP_EVERY = 100


class Asterix(Game):
    """Walk about between enemies, which end the game, and treasure, which is worth 1.

    Both come in from the sides, in eight lanes. The ramp makes them come more often and move faster.
    """

    channels = ("player", "enemy", "trail", "gold")
    minimal_actions = (STAY, LEFT, UP, RIGHT, DOWN)

    def opening(self, rows: NDArray[np.int64], draw: Draw) -> State:
        """Begin in the middle of an empty board."""
        lanes = (len(rows), len(_LANES))

        def every(value: int) -> NDArray[np.int64]:
            return np.full(len(rows), value)

        return {
            "x": every(5),
            "y": every(5),
            "there": np.zeros(lanes, dtype=np.bool_),
            "gold": np.zeros(lanes, dtype=np.bool_),
            "at": np.zeros(lanes, dtype=np.int64),
            "rightward": np.ones(lanes, dtype=np.int64),
            "spawn_every": every(_SPAWN_EVERY),
            "spawn_in": every(_SPAWN_EVERY),
            "move_every": every(_MOVE_EVERY),
            "move_in": every(_MOVE_EVERY),
            "ramp_in": every(_RAMP_EVERY),
            "ramps": every(0),
        }

    def step(
        self, state: State, action: NDArray[np.int64], draw: Draw
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Let something new come in, move the player, then what is there."""
        _spawn(state, draw)
        state["x"] = np.clip(state["x"] + RIGHTWARD[action], 0, SIZE - 1)
        state["y"] = np.clip(state["y"] + DOWNWARD[action], _LANES[0], _LANES[-1])
        reward, over = _meet(state)
        moves = state["move_in"] == 0
        if moves.any():
            state["move_in"][moves] = state["move_every"][moves]
            state["at"] += moves[:, None] * state["rightward"]
            state["there"] &= (state["at"] >= 0) & (state["at"] < SIZE)
            met, over_now = _meet(state)
            # Where nothing moved, what the player met before is gone, or has ended the game.
            reward, over = reward | met, over | over_now
        state["spawn_in"] -= 1
        state["move_in"] -= 1
        if self.ramping:
            _ramp(state)
        return reward, over

    def show(self, state: State) -> NDArray[np.bool_]:
        """Show the player, enemies and treasure, and where these came from."""
        shown = self.blank(state)
        boards = np.arange(len(shown))
        shown[boards, 0, state["y"], state["x"]] = True
        board, lane = np.nonzero(state["there"])
        column, row = state["at"][board, lane], _LANES[lane]
        shown[board, np.where(state["gold"][board, lane], 3, 1), row, column] = True
        behind = column - state["rightward"][board, lane]
        seen = (behind >= 0) & (behind < SIZE)
        shown[board[seen], 2, row[seen], behind[seen]] = True
        return shown


def _spawn(state: State, draw: Draw) -> None:
    """Let an enemy or treasure come into a free lane, where it is time and a lane is free."""
    boards = np.flatnonzero(state["spawn_in"] == 0)
    if len(boards) == 0:
        return
    state["spawn_in"][boards] = state["spawn_every"][boards]
    rightward, gold = (draw(boards, 2) < (1 / 2, 1 / 3)).T
    free = ~state["there"][boards]
    possible = free.any(axis=1)
    boards, rightward, gold, free = boards[possible], rightward[possible], gold[possible], free[possible]
    if len(boards) == 0:
        return
    chosen = whole(draw(boards, 1)[:, 0], 0, free.sum(axis=1))
    # The free lane that so many free lanes come before.
    lane = (np.cumsum(free, axis=1) > chosen[:, None]).argmax(axis=1)
    state["there"][boards, lane] = True
    state["gold"][boards, lane] = gold
    state["at"][boards, lane] = np.where(rightward, 0, SIZE - 1)
    state["rightward"][boards, lane] = np.where(rightward, 1, -1)


def _meet(state: State) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Take treasure off the board where the player is; say where that was, and where an enemy is."""
    boards = np.arange(len(state["x"]))
    lane = state["y"] - _LANES[0]
    met = state["there"][boards, lane] & (state["at"][boards, lane] == state["x"])
    gold = met & state["gold"][boards, lane]
    state["there"][boards[gold], lane[gold]] = False
    return gold, met & ~gold


def _ramp(state: State) -> None:
    """Count down to the next level of difficulty, and take it."""
    can = (state["spawn_every"] > 1) | (state["move_every"] > 1)
    due = can & (state["ramp_in"] < 0)
    state["ramp_in"] -= can & ~due
    if due.any():
        state["move_every"] -= due & (state["move_every"] > 1) & (state["ramps"] % 2 == 1)
        state["spawn_every"] -= due & (state["spawn_every"] > 1)
        state["ramps"] += due
        state["ramp_in"][due] = _RAMP_EVERY
