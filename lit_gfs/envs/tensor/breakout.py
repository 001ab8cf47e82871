"""MinAtar's Breakout in tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_gfs.envs.minatar.game import LEFT, RIGHT, SIZE, STAY
from lit_gfs.envs.tensor.boards import BoardGame, anywhere, cell, lines, on_boards, rightward
from lit_gfs.envs.tensor.game import whole

_BOTTOM = SIZE - 1


class Court(NamedTuple):
    """The state of every game; ``(num_envs,)`` int64 where nothing else is said."""

    paddle: Tensor
    x: Tensor
    """Column of the ball."""
    y: Tensor
    rightward: Tensor
    """Direction of the ball: 1 or -1."""
    downward: Tensor
    last_x: Tensor
    last_y: Tensor
    bricks: Tensor
    """Bool ``(num_envs, 10, 10)``."""
    in_brick: Tensor
    """Whether the ball has just broken a brick, or flies on through one, bool."""


class Breakout(BoardGame[Court]):
    """Bounce a ball off a paddle, to break three rows of bricks; see `lit_gfs.envs.minatar.breakout`."""

    channels = 4
    minimal_actions = (STAY, LEFT, RIGHT)
    opening_draws = 1

    def opening(self, draws: Tensor) -> Court:
        """Begin in the left or the right corner below the wall, with the ball on its way down."""
        right = whole(draws[:, 0], 0, 2)
        x, y = _BOTTOM * right, torch.full_like(right, 3)
        bricks = _wall(right).expand(len(right), SIZE, SIZE)
        return Court(
            paddle=torch.full_like(right, 4),
            x=x,
            y=y,
            rightward=1 - 2 * right,
            downward=torch.ones_like(right),
            last_x=x,
            last_y=y,
            bricks=bricks,
            in_brick=torch.zeros_like(right, dtype=torch.bool),
        )

    def step(self, state: Court, action: Tensor, draws: Tensor) -> tuple[Court, Tensor, Tensor]:
        """Move the paddle, then the ball."""
        paddle = (state.paddle + rightward(action)).clamp(0, _BOTTOM)
        last_x, last_y = state.x, state.y
        aimed_x, aimed_y = last_x + state.rightward, last_y + state.downward
        x, y = aimed_x.clamp(0, _BOTTOM), aimed_y.clamp(min=0)
        across = torch.where(aimed_x == x, state.rightward, -state.rightward)
        at_top = aimed_y < 0
        # A ball that breaks a brick turns back. If it is in a brick right after that, it flies on through it.
        ball = cell(y, x)
        in_brick = ~at_top & anywhere(state.bricks & ball)
        breaks = in_brick & ~state.in_brick
        bricks = state.bricks & ~(ball & on_boards(breaks))
        at_bottom = y == _BOTTOM
        cleared = at_bottom & ~anywhere(bricks)
        bricks = bricks | (on_boards(cleared) & _wall(x))
        # The ball bounces off the paddle's new place. If it meets the paddle sideways, it goes back.
        above = at_bottom & (last_x == paddle)
        beside = at_bottom & ~above & (x == paddle)
        returns = breaks | above | beside
        after = Court(
            paddle=paddle,
            x=x,
            y=torch.where(returns, last_y, y),
            rightward=torch.where(beside, -across, across),
            downward=torch.where(at_top | returns, -state.downward, state.downward),
            last_x=last_x,
            last_y=last_y,
            bricks=bricks,
            in_brick=in_brick,
        )
        return after, breaks.long(), at_bottom & ~returns

    def show(self, state: Court) -> Tensor:
        """Show paddle, ball, the ball's last place, and bricks."""
        paddle = cell(torch.full_like(state.paddle, _BOTTOM), state.paddle)
        ball, trail = cell(state.y, state.x), cell(state.last_y, state.last_x)
        return torch.stack([paddle, ball, trail, state.bricks], 1)


def _wall(like: Tensor) -> Tensor:
    """Mark the three rows of bricks, bool ``(10, 10)``."""
    row = lines(like)
    return ((row >= 1) & (row <= 3))[:, None].expand(SIZE, SIZE)
