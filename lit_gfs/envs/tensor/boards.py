"""What MinAtar's games in tensors share."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lit_gfs.envs.minatar.game import DOWN, LEFT, RIGHT, SIZE, UP
from lit_gfs.envs.minatar.pictures import PICTURE, pictures
from lit_gfs.envs.tensor.game import State, TensorGame


class BoardGame(TensorGame[State]):
    """A game on a board, which observations show: bool ``(channels, 10, 10)``.

    The rules, the order in which they apply, and the meaning of the draws are those of the ``minatar``
    package, version 1.0.15: given the same draws, every board is the same at every step.

    Args:
        ramping: Whether the game becomes harder over time, where it can.
    """

    observation_dtype = torch.bool
    picture_shape = PICTURE
    channels: ClassVar[int]
    """Kinds of objects on the board."""
    minimal_actions: ClassVar[tuple[int, ...]]
    """The actions that do something in this game."""

    def __init__(self, ramping: bool) -> None:
        self.ramping = ramping
        self.observation_shape = (self.channels, SIZE, SIZE)

    def pictures(self, state: State) -> Tensor:
        """Paint boards on the host, each channel in its own color."""
        boards = self.show(state)
        return torch.from_numpy(pictures(boards.cpu().numpy())).to(boards.device)


def rightward(action: Tensor) -> Tensor:
    """Return the columns to the right that each action moves a player, ``(num_envs,)``."""
    return (action == RIGHT).long() - (action == LEFT).long()


def downward(action: Tensor) -> Tensor:
    """Return the rows down that each action moves a player, ``(num_envs,)``."""
    return (action == DOWN).long() - (action == UP).long()


def sign(is_positive: Tensor) -> Tensor:
    """Return 1 where a mask is true, and -1 elsewhere."""
    return 2 * is_positive.long() - 1


def lines(like: Tensor) -> Tensor:
    """Return the numbers of the rows or columns, ``(10,)``, on the device of a tensor."""
    return torch.arange(SIZE, device=like.device)


def cell(row: Tensor, column: Tensor) -> Tensor:
    """Mark one cell of each board: from rows and columns ``(num_envs,)`` to bool ``(num_envs, 10, 10)``."""
    at = lines(row)
    return (row[:, None] == at)[:, :, None] & (column[:, None] == at)[:, None, :]


def cells(row: Tensor, column: Tensor, there: Tensor) -> Tensor:
    """Mark the cells of several objects on each board.

    Args:
        row: Their rows, ``(num_envs, objects)``.
        column: Their columns, which may lie outside of the board.
        there: Whether they are there at all.

    Returns:
        Bool ``(num_envs, 10, 10)``.
    """
    seen = there & is_on_board(column)
    # All others are marked beside the board.
    index = torch.where(seen, row * SIZE + column, SIZE * SIZE)
    board = torch.zeros(len(row), SIZE * SIZE + 1, dtype=torch.bool, device=row.device)
    return board.scatter_(1, index, True)[:, :-1].view(-1, SIZE, SIZE)


def is_on_board(column: Tensor) -> Tensor:
    """Say which columns are on the board."""
    return (column >= 0) & (column < SIZE)


def anywhere(board: Tensor) -> Tensor:
    """Say which boards ``(num_envs, 10, 10)`` have a marked cell, ``(num_envs,)``."""
    return board.flatten(1).any(1)


def on_boards(mask: Tensor) -> Tensor:
    """Turn a mask of boards, ``(num_envs,)``, into one that goes with their cells, ``(num_envs, 1, 1)``."""
    return mask[:, None, None]
