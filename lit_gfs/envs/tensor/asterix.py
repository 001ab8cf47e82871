"""MinAtar's Asterix in tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_gfs.envs.minatar.game import DOWN, LEFT, RIGHT, SIZE, STAY, UP
from lit_gfs.envs.tensor.boards import BoardGame, cell, cells, downward, is_on_board, rightward, sign
from lit_gfs.envs.tensor.game import whole

_LANES = SIZE - 2
"""Rows in which objects move, one in each: all but the first and the last."""
_SPAWN_EVERY = 10
_MOVE_EVERY = 5
_RAMP_EVERY = 100


class Field(NamedTuple):
    """The state of every game, int64: ``(num_envs,)``, or ``(num_envs, 8)`` of the lanes."""

    x: Tensor
    y: Tensor
    there: Tensor
    """Lanes with an object, bool."""
    gold: Tensor
    """Lanes whose object is treasure, bool; the others are enemies."""
    at: Tensor
    """Column of each object."""
    rightward: Tensor
    """Direction of each object: 1 or -1."""
    spawn_every: Tensor
    spawn_in: Tensor
    move_every: Tensor
    move_in: Tensor
    ramp_in: Tensor
    ramps: Tensor


class Asterix(BoardGame[Field]):
    """Walk between enemies and treasure; see `lit_gfs.envs.minatar.asterix`."""

    channels = 4
    minimal_actions = (STAY, LEFT, UP, RIGHT, DOWN)
    step_draws = 3

    def opening(self, draws: Tensor) -> Field:
        """Begin in the middle of an empty board."""
        zero = torch.zeros(len(draws), dtype=torch.int64, device=draws.device)
        lanes = zero[:, None].expand(-1, _LANES)
        return Field(
            x=zero + 5,
            y=zero + 5,
            there=lanes.bool(),
            gold=lanes.bool(),
            at=lanes,
            rightward=lanes + 1,
            spawn_every=zero + _SPAWN_EVERY,
            spawn_in=zero + _SPAWN_EVERY,
            move_every=zero + _MOVE_EVERY,
            move_in=zero + _MOVE_EVERY,
            ramp_in=zero + _RAMP_EVERY,
            ramps=zero,
        )

    def step(self, state: Field, action: Tensor, draws: Tensor) -> tuple[Field, Tensor, Tensor]:
        """Let a new object come in, move the player, then the objects."""
        state = _spawn(state, draws)
        state = state._replace(
            x=(state.x + rightward(action)).clamp(0, SIZE - 1),
            y=(state.y + downward(action)).clamp(1, _LANES),
        )
        state, reward, over = _meet(state)
        moves = state.move_in == 0
        at = state.at + moves[:, None] * state.rightward
        state = state._replace(at=at, there=state.there & is_on_board(at))
        # On boards without a move, treasure met before is gone, and an enemy met before ends the game.
        state, reward_now, over_now = _meet(state)
        state = state._replace(
            spawn_in=state.spawn_in - 1, move_in=torch.where(moves, state.move_every, state.move_in) - 1
        )
        if self.ramping:
            state = _ramp(state)
        return state, (reward | reward_now).long(), over | over_now

    def show(self, state: Field) -> Tensor:
        """Show the player, enemies and treasure, and a trail behind these."""
        row = _rows(state.y).expand_as(state.at)
        return torch.stack(
            [
                cell(state.y, state.x),
                cells(row, state.at, state.there & ~state.gold),
                cells(row, state.at - state.rightward, state.there),
                cells(row, state.at, state.there & state.gold),
            ],
            1,
        )


def _rows(like: Tensor) -> Tensor:
    """Return the row of each lane, ``(8,)``."""
    return torch.arange(1, _LANES + 1, device=like.device)


def _spawn(state: Field, draws: Tensor) -> Field:
    """Let an enemy or treasure come in, on boards where it is time and a lane is free."""
    due = state.spawn_in == 0
    from_left, is_gold = draws[:, 0] < 1 / 2, draws[:, 1] < 1 / 3
    free = ~state.there
    chosen = whole(draws[:, 2], 0, free.sum(1))
    # The free lane with ``chosen`` free lanes before it.
    new = free & (free.cumsum(1) == chosen[:, None] + 1) & due[:, None]
    start = torch.where(from_left, 0, SIZE - 1)
    return state._replace(
        there=state.there | new,
        gold=torch.where(new, is_gold[:, None], state.gold),
        at=torch.where(new, start[:, None], state.at),
        rightward=torch.where(new, sign(from_left)[:, None], state.rightward),
        spawn_in=torch.where(due, state.spawn_every, state.spawn_in),
    )


def _meet(state: Field) -> tuple[Field, Tensor, Tensor]:
    """Remove treasure that the player meets; say on which boards treasure is met, and an enemy."""
    met = state.there & (state.at == state.x[:, None]) & (_rows(state.y) == state.y[:, None])
    gold = met & state.gold
    return state._replace(there=state.there & ~gold), gold.any(1), (met & ~gold).any(1)


def _ramp(state: Field) -> Field:
    """Count down to the next level of difficulty, and raise the level when it is due."""
    can = (state.spawn_every > 1) | (state.move_every > 1)
    due = can & (state.ramp_in < 0)
    faster = due & (state.move_every > 1) & (state.ramps % 2 == 1)
    return state._replace(
        move_every=state.move_every - faster.long(),
        spawn_every=state.spawn_every - (due & (state.spawn_every > 1)).long(),
        ramps=state.ramps + due.long(),
        ramp_in=torch.where(due, _RAMP_EVERY, state.ramp_in - can.long()),
    )
