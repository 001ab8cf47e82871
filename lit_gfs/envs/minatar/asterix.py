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
"""Rows in which objects move, one in each."""
_SPAWN_EVERY = 10
_MOVE_EVERY = 5
_RAMP_EVERY = 100


class Asterix(Game):
    """Walk between enemies, which end the game, and treasure, which has a reward of 1.

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
        """Let a new object come in, move the player, then the objects."""
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
            # On boards without a move, treasure met before is gone, and an enemy met before ends the game.
            reward, over = reward | met, over | over_now
        state["spawn_in"] -= 1
        state["move_in"] -= 1
        if self.ramping:
            _ramp(state)
        return reward, over

    def show(self, state: State) -> NDArray[np.bool_]:
        """Show the player, enemies and treasure, and a trail behind these."""
        grid = self.blank(state)
        boards = np.arange(len(grid))
        grid[boards, 0, state["y"], state["x"]] = True
        board, lane = np.nonzero(state["there"])
        column, row = state["at"][board, lane], _LANES[lane]
        grid[board, np.where(state["gold"][board, lane], 3, 1), row, column] = True
        behind = column - state["rightward"][board, lane]
        seen = (behind >= 0) & (behind < SIZE)
        grid[board[seen], 2, row[seen], behind[seen]] = True
        return grid


def _spawn(state: State, draw: Draw) -> None:
    """Let an enemy or treasure come in, on boards where it is time and a lane is free."""
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
    # The free lane with ``chosen`` free lanes before it.
    lane = (np.cumsum(free, axis=1) > chosen[:, None]).argmax(axis=1)
    state["there"][boards, lane] = True
    state["gold"][boards, lane] = gold
    state["at"][boards, lane] = np.where(rightward, 0, SIZE - 1)
    state["rightward"][boards, lane] = np.where(rightward, 1, -1)


def _meet(state: State) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Remove treasure that the player meets; return the boards with treasure met, and with an enemy met."""
    boards = np.arange(len(state["x"]))
    lane = state["y"] - _LANES[0]
    met = state["there"][boards, lane] & (state["at"][boards, lane] == state["x"])
    gold = met & state["gold"][boards, lane]
    state["there"][boards[gold], lane[gold]] = False
    return gold, met & ~gold


def _ramp(state: State) -> None:
    """Count down to the next level of difficulty, and raise the level when it is due."""
    can = (state["spawn_every"] > 1) | (state["move_every"] > 1)
    due = can & (state["ramp_in"] < 0)
    state["ramp_in"] -= can & ~due
    if due.any():
        state["move_every"] -= due & (state["move_every"] > 1) & (state["ramps"] % 2 == 1)
        state["spawn_every"] -= due & (state["spawn_every"] > 1)
        state["ramps"] += due
        state["ramp_in"][due] = _RAMP_EVERY
