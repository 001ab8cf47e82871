"""MinAtar's Freeway."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_gfs.envs.minatar.game import DOWN, DOWNWARD, SIZE, STAY, UP, Draw, Game, State, whole

_CARS = 8
_LANES = np.arange(1, _CARS + 1)
"""Row of each car."""
_CHICKEN_COLUMN = 4
_START = SIZE - 1
_MOVE_EVERY = 3
_STEPS = 2_500
_SLOWEST = 5
"""Steps between moves of the slowest car."""


class Freeway(Game):
    """Walk a chicken across eight lanes of cars: a reward of 1 on the other side, a new start when hit.

    The chicken moves once in three steps. Cars get new speeds whenever it arrives. The game has no ramp, and
    ends after 2,500 steps, which it counts as an end of the game and not as a time limit.
    """

    channels = ("chicken", "car", "speed1", "speed2", "speed3", "speed4", "speed5")
    minimal_actions = (STAY, UP, DOWN)

    def opening(self, rows: NDArray[np.int64], draw: Draw) -> State:
        """Begin with all cars at the left end of their lanes."""
        period, rightward = _traffic(rows, draw)
        return {
            "row": np.full(len(rows), _START),
            "rest": np.full(len(rows), _MOVE_EVERY),
            "left": np.full(len(rows), _STEPS),
            "car": np.zeros_like(period),
            "wait": period.copy(),
            "period": period,
            "rightward": rightward,
        }

    def step(
        self, state: State, action: NDArray[np.int64], draw: Draw
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Move the chicken, then the cars."""
        move = np.where(state["rest"] == 0, DOWNWARD[action], 0)
        row = np.clip(state["row"] + move, 0, _START)
        rest = np.where(move != 0, _MOVE_EVERY, state["rest"])
        arrived = row == 0
        arrivals = np.flatnonzero(arrived)
        if len(arrivals):
            period, rightward = _traffic(arrivals, draw)
            state["period"][arrivals] = state["wait"][arrivals] = period
            state["rightward"][arrivals] = rightward
            row[arrivals] = _START
        before = state["car"]
        moves = state["wait"] == 0
        after = np.where(moves, (before + state["rightward"]) % SIZE, before)
        # A car runs the chicken over before it moves as well as after.
        in_column = (before == _CHICKEN_COLUMN) | (after == _CHICKEN_COLUMN)
        hit = (in_column & (row[:, None] == _LANES)).any(axis=1)
        state["row"] = np.where(hit, _START, row)
        state["rest"] = np.maximum(rest - 1, 0)
        state["car"] = after
        state["wait"] = np.where(moves, state["period"], state["wait"] - 1)
        state["left"] = state["left"] - 1
        return arrived, state["left"] < 0

    def show(self, state: State) -> NDArray[np.bool_]:
        """Show the chicken, the cars, and behind each car a trail in the channel of its speed."""
        grid = self.blank(state)
        boards = np.arange(len(grid))
        grid[boards, 0, state["row"], _CHICKEN_COLUMN] = True
        grid[boards[:, None], 1, _LANES, state["car"]] = True
        behind = (state["car"] - state["rightward"]) % SIZE
        grid[boards[:, None], 1 + state["period"], _LANES, behind] = True
        return grid


def _traffic(rows: NDArray[np.int64], draw: Draw) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw how long each car waits between moves, and its direction, ``(len(rows), 8)`` each."""
    period = whole(draw(rows, _CARS), 1, _SLOWEST + 1)
    return period, np.where(draw(rows, _CARS) < 0.5, -1, 1)
