"""MinAtar's Freeway in tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_gfs.envs.minatar.game import DOWN, SIZE, STAY, UP
from lit_gfs.envs.tensor.boards import BoardGame, cell, cells, downward, sign
from lit_gfs.envs.tensor.game import where_row, whole

_CARS = 8
_CHICKEN_COLUMN = 4
_START = SIZE - 1
_MOVE_EVERY = 3
_STEPS = 2_500
_SLOWEST = 5
"""Steps between moves of the slowest car."""


class Road(NamedTuple):
    """The state of every game, int64: of the chicken ``(num_envs,)``, of the cars ``(num_envs, 8)``."""

    row: Tensor
    rest: Tensor
    """Steps before the chicken can move again."""
    left: Tensor
    """Steps before the game is over."""
    car: Tensor
    """Column of each car."""
    wait: Tensor
    """Steps before a car moves again."""
    period: Tensor
    """Steps that a car waits between moves."""
    rightward: Tensor
    """Direction of each car: 1 or -1."""


class Freeway(BoardGame[Road]):
    """Walk a chicken across eight lanes of cars; see `lit_gfs.envs.minatar.freeway`."""

    channels = 7
    minimal_actions = (STAY, UP, DOWN)
    opening_draws = 2 * _CARS
    step_draws = 2 * _CARS

    def opening(self, draws: Tensor) -> Road:
        """Begin with all cars at the left end of their lanes."""
        period, direction = _traffic(draws)
        row = torch.full_like(period[:, 0], _START)
        return Road(
            row=row,
            rest=torch.full_like(row, _MOVE_EVERY),
            left=torch.full_like(row, _STEPS),
            car=torch.zeros_like(period),
            wait=period,
            period=period,
            rightward=direction,
        )

    def step(self, state: Road, action: Tensor, draws: Tensor) -> tuple[Road, Tensor, Tensor]:
        """Move the chicken, then the cars."""
        move = torch.where(state.rest == 0, downward(action), 0)
        row = (state.row + move).clamp(0, _START)
        rest = torch.where(move != 0, _MOVE_EVERY, state.rest)
        arrived = row == 0
        row = row.masked_fill(arrived, _START)
        new_period, new_direction = _traffic(draws)
        period = where_row(arrived, new_period, state.period)
        direction = where_row(arrived, new_direction, state.rightward)
        wait = where_row(arrived, new_period, state.wait)
        moves = wait == 0
        car = torch.where(moves, (state.car + direction) % SIZE, state.car)
        # A car runs the chicken over before it moves as well as after.
        in_column = (state.car == _CHICKEN_COLUMN) | (car == _CHICKEN_COLUMN)
        hit = (in_column & (row[:, None] == _lanes(row))).any(1)
        after = Road(
            row=row.masked_fill(hit, _START),
            rest=(rest - 1).clamp(min=0),
            left=state.left - 1,
            car=car,
            wait=torch.where(moves, period, wait - 1),
            period=period,
            rightward=direction,
        )
        return after, arrived.long(), after.left < 0

    def show(self, state: Road) -> Tensor:
        """Show the chicken, the cars, and behind each car a trail in the channel of its speed."""
        row = _lanes(state.row).expand_as(state.car)
        behind = (state.car - state.rightward) % SIZE
        everywhere = torch.ones_like(state.car, dtype=torch.bool)
        return torch.stack(
            [
                cell(state.row, torch.full_like(state.row, _CHICKEN_COLUMN)),
                cells(row, state.car, everywhere),
                *(cells(row, behind, state.period == speed) for speed in range(1, _SLOWEST + 1)),
            ],
            1,
        )


def _lanes(like: Tensor) -> Tensor:
    """Return the row of each car, ``(8,)``."""
    return torch.arange(1, _CARS + 1, device=like.device)


def _traffic(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draw how long each car waits between moves, and its direction, ``(num_envs, 8)`` each."""
    return whole(draws[:, :_CARS], 1, _SLOWEST + 1), sign(draws[:, _CARS:] >= 0.5)
