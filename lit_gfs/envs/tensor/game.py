"""The interface of games whose steps are pure functions of tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=tuple[Any, ...])
"""The state of a batch of games: a named tuple of tensors ``(num_envs, ...)``, and of such tuples."""


class TensorGame(ABC, Generic[State]):
    """The rules of a game, for a batch of them on any device.

    Every method is a pure function of tensors: the same state, action and draws give the same result. None
    reads a number back to the host, so that a GPU steps without waiting for it, and a CUDA graph can replay
    a step. All draws are made beforehand; a game reads the ones that it needs.
    """

    observation_shape: tuple[int, ...]
    """Shape of one observation."""
    observation_dtype: ClassVar[torch.dtype]
    picture_shape: ClassVar[tuple[int, int, int]]
    """Shape of a picture, ``(height, width, 3)``."""
    opening_draws: ClassVar[int] = 0
    """Numbers that the opening of an episode draws."""
    step_draws: ClassVar[int] = 0
    """Numbers that a step draws."""

    @abstractmethod
    def opening(self, draws: Tensor) -> State:
        """Return the state at the start of an episode.

        Args:
            draws: Numbers in [0, 1), float64 ``(num_envs, opening_draws)``.
        """

    @abstractmethod
    def step(self, state: State, action: Tensor, draws: Tensor) -> tuple[State, Tensor, Tensor]:
        """Move every game on.

        Args:
            state: The state of every game; it is left as it is.
            action: One action for each, ``(num_envs,)`` int64; it is not checked.
            draws: Numbers in [0, 1), float64 ``(num_envs, step_draws)``.

        Returns:
            The next state; the reward, and whether the game is over, ``(num_envs,)`` each.
        """

    @abstractmethod
    def show(self, state: State) -> Tensor:
        """Return observations, ``(num_envs, *observation_shape)``."""

    @abstractmethod
    def pictures(self, state: State) -> Tensor:
        """Paint the state, ``(num_envs, height, width, 3)`` uint8; this happens on the host."""


def whole(uniform: Tensor, low: int, high: int | Tensor) -> Tensor:
    """Turn numbers in [0, 1) into whole numbers from ``low`` to ``high``, without ``high``, int64."""
    return low + (uniform * (high - low)).long()


def choose(mask: Tensor, new: State, old: State) -> State:
    """Return ``new`` where a mask ``(num_envs,)`` is true, and ``old`` elsewhere."""
    parts: Any = zip(new, old, strict=True)
    return type(old)(
        *(where_row(mask, *pair) if isinstance(pair[1], Tensor) else choose(mask, *pair) for pair in parts)
    )


def where_row(mask: Tensor, new: Any, old: Tensor) -> Tensor:
    """Choose whole rows ``(num_envs, ...)`` by a mask ``(num_envs,)``."""
    return torch.where(mask.view(-1, *(1 for _ in old.shape[1:])), new, old)
