"""MinAtar's Breakout."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_gfs.envs.minatar.game import LEFT, RIGHT, RIGHTWARD, SIZE, STAY, Draw, Game, State, whole

_BOTTOM = SIZE - 1
_WALL = slice(1, 4)
"""Rows of bricks."""


class Breakout(Game):
    """Bounce a ball off a paddle, to break three rows of bricks: a reward of 1 for each brick.

    The ball moves along diagonals. The game ends when the paddle misses it, and has no ramp. Once all bricks
    are broken, there is a new wall when the ball comes to the bottom.
    """

    channels = ("paddle", "ball", "trail", "brick")
    minimal_actions = (STAY, LEFT, RIGHT)

    def opening(self, rows: NDArray[np.int64], draw: Draw) -> State:
        """Begin in the left or the right corner below the wall, with the ball on its way down."""
        right = whole(draw(rows, 1)[:, 0], 0, 2)
        x = _BOTTOM * right
        y = np.full_like(x, 3)
        bricks = np.zeros((len(rows), SIZE, SIZE), dtype=np.bool_)
        bricks[:, _WALL] = True
        return {
            "paddle": np.full_like(x, 4),
            "x": x,
            "y": y,
            "rightward": 1 - 2 * right,
            "downward": np.ones_like(x),
            "last_x": x.copy(),
            "last_y": y.copy(),
            "bricks": bricks,
            "in_brick": np.zeros(len(rows), dtype=np.bool_),
        }

    def step(
        self, state: State, action: NDArray[np.int64], draw: Draw
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Move the paddle, then the ball."""
        boards = np.arange(len(action))
        bricks = state["bricks"]
        paddle = np.clip(state["paddle"] + RIGHTWARD[action], 0, SIZE - 1)
        last_x, last_y = state["x"], state["y"]
        rightward, downward = state["rightward"], state["downward"]
        aimed_x, aimed_y = last_x + rightward, last_y + downward
        x, y = np.clip(aimed_x, 0, SIZE - 1), np.maximum(aimed_y, 0)
        rightward = np.where(aimed_x == x, rightward, -rightward)
        at_top = aimed_y < 0
        # A ball that breaks a brick turns back. If it is in a brick right after that, it flies on through it.
        in_brick = ~at_top & bricks[boards, y, x]
        breaks = in_brick & ~state["in_brick"]
        bricks[boards[breaks], y[breaks], x[breaks]] = False
        at_bottom = y == _BOTTOM
        cleared = np.flatnonzero(at_bottom)
        cleared = cleared[~bricks[cleared].any(axis=(1, 2))]
        bricks[cleared, _WALL] = True
        # The ball bounces off the paddle's new place. If it meets the paddle sideways, it goes back.
        above = at_bottom & (last_x == paddle)
        beside = at_bottom & ~above & (x == paddle)
        returns = breaks | above | beside
        state["paddle"], state["x"], state["y"] = paddle, x, np.where(returns, last_y, y)
        state["last_x"], state["last_y"] = last_x, last_y
        state["rightward"] = np.where(beside, -rightward, rightward)
        state["downward"] = np.where(at_top | returns, -downward, downward)
        state["in_brick"] = in_brick
        return breaks, at_bottom & ~returns

    def show(self, state: State) -> NDArray[np.bool_]:
        """Show paddle, ball, the ball's last place, and bricks."""
        grid = self.blank(state)
        boards = np.arange(len(grid))
        grid[boards, 0, _BOTTOM, state["paddle"]] = True
        grid[boards, 1, state["y"], state["x"]] = True
        grid[boards, 2, state["last_y"], state["last_x"]] = True
        grid[:, 3] = state["bricks"]
        return grid
