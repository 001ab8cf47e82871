"""MinAtar's Space Invaders in tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_gfs.envs.minatar.game import FIRE, LEFT, RIGHT, SIZE, STAY
from lit_gfs.envs.tensor.boards import BoardGame, anywhere, cell, lines, on_boards, rightward
from lit_gfs.envs.tensor.game import where_row

_BOTTOM = SIZE - 1
_SHOOT_EVERY = 5
_ALIENS_SHOOT_EVERY = 10
_ALIENS_MOVE_EVERY = 12
_ALIENS_AT_THEIR_FASTEST = 6
"""Fewest steps between moves of a full wave, where the ramp ends."""


class Sky(NamedTuple):
    """The state of every game: ``(num_envs,)`` int64, and boards ``(num_envs, 10, 10)`` bool."""

    x: Tensor
    """Column of the cannon."""
    aliens: Tensor
    bullets: Tensor
    alien_bullets: Tensor
    rightward: Tensor
    """Direction of the aliens: 1 or -1."""
    move_every: Tensor
    move_in: Tensor
    aliens_shoot_in: Tensor
    shoot_in: Tensor


class SpaceInvaders(BoardGame[Sky]):
    """Shoot down waves of aliens, which shoot back; see `lit_gfs.envs.minatar.space_invaders`."""

    channels = 6
    minimal_actions = (STAY, LEFT, RIGHT, FIRE)

    def opening(self, draws: Tensor) -> Sky:
        """Begin with a full wave that moves to the left."""
        zero = torch.zeros(len(draws), dtype=torch.int64, device=draws.device)
        empty = torch.zeros(len(draws), SIZE, SIZE, dtype=torch.bool, device=draws.device)
        return Sky(
            x=zero + 5,
            aliens=empty | _wave(zero),
            bullets=empty,
            alien_bullets=empty,
            rightward=zero - 1,
            move_every=zero + _ALIENS_MOVE_EVERY,
            move_in=zero + _ALIENS_MOVE_EVERY,
            aliens_shoot_in=zero + _ALIENS_SHOOT_EVERY,
            shoot_in=zero,
        )

    def step(self, state: Sky, action: Tensor, draws: Tensor) -> tuple[Sky, Tensor, Tensor]:
        """Let the player act, then move bullets and aliens, and count the aliens that are hit."""
        fires = (action == FIRE) & (state.shoot_in == 0)
        shoot_in = torch.where(fires, _SHOOT_EVERY, state.shoot_in)
        x = (state.x + rightward(action)).clamp(0, _BOTTOM)
        column = x[:, None] == lines(x)
        # A new bullet leaves the cannon's row in the step that fires it.
        empty = torch.zeros_like(column)[:, None]
        fired = (column & fires[:, None])[:, None]
        bullets = torch.cat([state.bullets[:, 1:-1], fired, empty], 1)
        alien_bullets = torch.cat([empty, state.alien_bullets[:, :-1]], 1)
        over = ((alien_bullets[:, _BOTTOM] | state.aliens[:, _BOTTOM]) & column).any(1)
        # The aliens march: the fewer are left, the sooner they move again.
        moves = state.move_in == 0
        marched, turned, landed = _march(state.aliens, state.rightward)
        aliens = where_row(moves, marched, state.aliens)
        direction = torch.where(moves, turned, state.rightward)
        next_move = torch.minimum(state.aliens.flatten(1).sum(1), state.move_every)
        move_in = torch.where(moves, next_move, state.move_in)
        over = over | (moves & (landed | (aliens[:, _BOTTOM] & column).any(1)))
        # One of them shoots.
        shooting = state.aliens_shoot_in == 0
        alien_bullets = alien_bullets | (on_boards(shooting) & _nearest(aliens, x))
        aliens_shoot_in = torch.where(shooting, _ALIENS_SHOOT_EVERY, state.aliens_shoot_in)
        hit = aliens & bullets
        aliens = aliens & ~hit
        cleared = ~anywhere(aliens)
        move_every = state.move_every
        if self.ramping:
            move_every = move_every - (cleared & (move_every > _ALIENS_AT_THEIR_FASTEST)).long()
        after = Sky(
            x=x,
            aliens=aliens | (on_boards(cleared) & _wave(x)),
            bullets=bullets & ~hit,
            alien_bullets=alien_bullets,
            rightward=direction,
            move_every=move_every,
            move_in=move_in - 1,
            aliens_shoot_in=aliens_shoot_in - 1,
            shoot_in=(shoot_in - 1).clamp(min=0),
        )
        return after, hit.flatten(1).sum(1), over

    def show(self, state: Sky) -> Tensor:
        """Show the cannon, aliens, aliens again in the channel of their direction, and all bullets."""
        leftward = on_boards(state.rightward < 0)
        cannon = cell(torch.full_like(state.x, _BOTTOM), state.x)
        by_direction = state.aliens & leftward, state.aliens & ~leftward
        return torch.stack([cannon, state.aliens, *by_direction, state.bullets, state.alien_bullets], 1)


def _wave(like: Tensor) -> Tensor:
    """Mark a full wave of aliens, bool ``(10, 10)``."""
    at = lines(like)
    return (at < 4)[:, None] & ((at >= 2) & (at < 8))


def _march(aliens: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move aliens sideways, or down and back at an edge; return them, their direction, and who landed."""
    leftward = direction < 0
    at_edge = torch.where(leftward, aliens[:, :, 0].any(1), aliens[:, :, -1].any(1))
    landed = at_edge & aliens[:, _BOTTOM].any(1)
    sideways = where_row(leftward, aliens.roll(-1, 2), aliens.roll(1, 2))
    return (
        where_row(at_edge, aliens.roll(1, 1), sideways),
        torch.where(at_edge, -direction, direction),
        landed,
    )


def _nearest(aliens: Tensor, x: Tensor) -> Tensor:
    """Mark the lowest alien in the column nearest to the cannon; of two columns, in the left one."""
    at = lines(x)
    # Twice the distance, and one more on the right: no two columns are equally far.
    distance = 2 * (at - x[:, None]).abs() + (at > x[:, None]).long()
    distance = torch.where(aliens.any(1), distance, 2 * SIZE)
    column = aliens & (distance == distance.amin(1, keepdim=True))[:, None, :]
    row = torch.where(column, at[:, None], -1).flatten(1).amax(1)
    return column & (at == row[:, None])[:, :, None]
