"""The interface of the games of MinAtar, and what their rules share."""

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
"""The state of a batch of games: arrays ``(num_envs, ...)`` by name."""

Draw = Callable[[NDArray[np.int64], int], NDArray[np.float64]]
"""Draws ``count`` numbers in [0, 1) for each of some rows: ``(len(rows), count)``."""


class Game(ABC):
    """The rules of a game, for a batch of boards at once; the state is outside of it.

    The rules, the order in which they apply, and their random draws are those of the ``minatar`` package,
    version 1.0.15: given the same draws, every board is the same at every step.

    Args:
        ramping: Whether the game becomes harder over time, where it can.
    """

    channels: ClassVar[tuple[str, ...]]
    """The kind of object in each channel of a board."""
    minimal_actions: ClassVar[tuple[int, ...]]
    """The actions that do something in this game."""

    def __init__(self, ramping: bool) -> None:
        self.ramping = ramping

    @abstractmethod
    def opening(self, rows: NDArray[np.int64], draw: Draw) -> State:
        """Return the state at the start of an episode, ``(len(rows), ...)`` by name.

        Args:
            rows: The boards that draw for it.
            draw: The source of random numbers.
        """

    @abstractmethod
    def step(
        self, state: State, action: NDArray[np.int64], draw: Draw
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Move every board on, in place.

        Args:
            state: The state of every board.
            action: One of the six actions for each, ``(num_envs,)``.
            draw: The source of random numbers.

        Returns:
            Reward, and whether the game is over, ``(num_envs,)`` each.
        """

    @abstractmethod
    def show(self, state: State) -> NDArray[np.bool_]:
        """Return boards ``(boards, channels, 10, 10)``, in a new array."""

    def blank(self, state: State) -> NDArray[np.bool_]:
        """Return empty boards ``(boards, channels, 10, 10)``, to draw on."""
        boards = len(next(iter(state.values())))
        return np.zeros((boards, len(self.channels), SIZE, SIZE), dtype=np.bool_)


def whole(uniform: NDArray[np.float64], low: int, high: Any) -> NDArray[np.int64]:
    """Turn numbers in [0, 1) into whole numbers from ``low`` to ``high``, without ``high``."""
    return low + (uniform * (high - low)).astype(np.int64)
