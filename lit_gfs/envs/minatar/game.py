"""What the games of MinAtar have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

SIZE = 10
"""Rows and columns of the board."""

STAY, LEFT, UP, RIGHT, DOWN, FIRE = range(6)
"""The six actions of every game, in MinAtar's order."""

RIGHTWARD = np.array([0, -1, 0, 1, 0, 0])
"""Columns to the right that each action moves a player."""

DOWNWARD = np.array([0, 0, -1, 0, 1, 0])
"""Rows down that each action moves a player."""

State = dict[str, NDArray[Any]]
"""All that a batch of games remembers, by name: plain arrays ``(num_envs, ...)``."""

Draw = Callable[[NDArray[np.int64], int], NDArray[np.float64]]
"""Draws numbers in [0, 1) for some rows, so many for each: ``(len(rows), count)``."""


class Game(ABC):
    """Rules of a game, for a batch of boards at once; it keeps nothing between calls.

    The rules, and the order in which they apply and draw at random, are those of the ``minatar`` package,
    version 1.0.15: given the same draws, every board shows the same at every step.

    Args:
        ramping: Whether the game becomes harder over time, where it can.
    """

    channels: ClassVar[tuple[str, ...]]
    """What each channel of a board shows."""
    minimal_actions: ClassVar[tuple[int, ...]]
    """The actions that do something in this game."""

    def __init__(self, ramping: bool) -> None:
        self.ramping = ramping

    @abstractmethod
    def opening(self, rows: NDArray[np.int64], draw: Draw) -> State:
        """Return the state that an episode begins in, ``(len(rows), ...)`` by name.

        Args:
            rows: Which boards draw for it.
            draw: Where random numbers come from.
        """

    @abstractmethod
    def step(
        self, state: State, action: NDArray[np.int64], draw: Draw
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Move every board on, in place.

        Args:
            state: Of every board.
            action: One of the six actions each, ``(num_envs,)``.
            draw: Where random numbers come from.

        Returns:
            Reward, and whether the game is over, ``(num_envs,)`` each.
        """

    @abstractmethod
    def show(self, state: State) -> NDArray[np.bool_]:
        """Return what boards show, ``(boards, channels, 10, 10)``, in an array of its own."""

    def blank(self, state: State) -> NDArray[np.bool_]:
        """Return empty boards ``(boards, channels, 10, 10)``, to draw on."""
        boards = len(next(iter(state.values())))
        return np.zeros((boards, len(self.channels), SIZE, SIZE), dtype=np.bool_)


def whole(uniform: NDArray[np.float64], low: int, high: Any) -> NDArray[np.int64]:
    """Turn numbers in [0, 1) into whole ones from ``low`` to ``high``, that one left out."""
    return low + (uniform * (high - low)).astype(np.int64)
