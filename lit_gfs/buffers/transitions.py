"""Replay memory for observations that are vectors, or images without a stack: stored as they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from lit_gfs.buffers.ring import RingStorage
from lit_gfs.errors import UserError

_ACTED = ("observation", "action")
_FOLLOWING = ("observation", "reward", "done", "terminated", "truncated")
_OPTIONAL = ("end_of_life",)


class TransitionStorage(RingStorage):
    """A ring of transitions, one array for each of their entries.

    Index ``i < len(storage)`` names slot ``i`` of the ring, as in TorchRL's ``LazyTensorStorage`` under its
    round-robin writer; a rollout is appended environment by environment. That storage goes through a
    tensordict's general indexing, which for a few small entries takes several times as long as reading them.

    Args:
        capacity: Most transitions kept.

    Raises:
        UserError: If there is room for none.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise UserError(f"capacity is {capacity}; expected a whole number of at least 1")
        super().__init__(capacity)
        self._empty()

    def _empty(self) -> None:
        """Forget everything and give the memory back."""
        self._acted: dict[str, NDArray[Any]] = {}
        self._following: dict[str, NDArray[Any]] = {}
        self._count = 0  # transitions ever appended

    def extend(self, rollout: TensorDictBase) -> Tensor:
        """Append what a collector hands out.

        Args:
            rollout: ``(num_envs, T)`` on the CPU: ``observation``, ``action``, and under ``next``
                ``observation``, ``reward``, ``done``, ``terminated``, ``truncated`` and optionally
                ``end_of_life``. Other keys are dropped.

        Returns:
            The slots of the appended transitions, ``(num_envs * T,)``. Of a rollout larger than the ring, the
            last ones stay.
        """
        following = rollout["next"]
        optional = [key for key in _OPTIONAL if key in (self._following or following.keys())]
        acted_rows = {key: _rows(rollout[key]) for key in _ACTED}
        following_rows = {key: _rows(following[key]) for key in (*_FOLLOWING, *optional)}
        if not self._acted:
            self._acted = self._reserve(acted_rows)
            self._following = self._reserve(following_rows)
        size = rollout.numel()
        slots = (self._count + np.arange(size)) % self.max_size
        kept = slice(max(0, size - self.max_size), size)
        for columns, written in ((self._acted, acted_rows), (self._following, following_rows)):
            for key, column in columns.items():
                column[slots[kept]] = written[key][kept]
        self._count += size
        return torch.from_numpy(slots)

    def _reserve(self, rows: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # Zeros cost no memory until they are written over.
        return {key: np.zeros((self.max_size, *row.shape[1:]), row.dtype) for key, row in rows.items()}

    def get(self, index: int | slice | Tensor) -> TensorDict:
        """Return copies of transitions.

        Args:
            index: Which of the ``len(storage)`` transitions; a tensor may have any shape.

        Returns:
            A TensorDict with the shape of ``index``, and the keys that `extend` keeps.

        Raises:
            IndexError: If an index is negative or not less than ``len(storage)``.
        """
        at = self._indices(index)
        acted, following = (
            {key: torch.from_numpy(np.asarray(column[at])) for key, column in columns.items()}
            for columns in (self._acted, self._following)
        )
        # The public constructor checks every entry, which takes longer than copying them.
        shape = torch.Size(at.shape)
        entries: dict[str, Any] = {**acted, "next": TensorDict._new_unsafe(following, batch_size=shape)}
        return TensorDict._new_unsafe(entries, batch_size=shape)

    def __len__(self) -> int:
        """Return how many transitions can be sampled."""
        return min(self._count, self.max_size)

    @property
    def row_count(self) -> int:
        """How many transitions were ever appended, and so the number of the next one."""
        return self._count

    @property
    def first_row(self) -> int:
        """The number of the oldest transition."""
        return max(0, self._count - self.max_size)

    def sizes(self) -> dict[str, int]:
        """Return the capacity."""
        return {"capacity": self.max_size}

    def position(self) -> dict[str, list[int]]:
        """Return how many transitions were ever appended."""
        return {"row_count": [self._count]}

    def rows(self, first: int, last: int) -> dict[str, Any]:
        """Copy transitions out: ``(last - first, *row)`` of each entry; see `RingStorage.rows`."""
        slots = np.arange(first, last) % self.max_size

        def at_slots(columns: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
            return {key: torch.from_numpy(column[slots]) for key, column in columns.items()}

        return {
            "numbers": torch.tensor([first, last]),
            "acted": at_slots(self._acted),
            "following": at_slots(self._following),
        }

    def _set_position(self, position: dict[str, list[int]]) -> None:
        (self._count,) = position["row_count"]

    def _write(self, first: int, last: int, rows: dict[str, Any]) -> None:
        slots = np.arange(first, last) % self.max_size
        acted, following = (
            {key: column.numpy() for key, column in rows[name].items()} for name in ("acted", "following")
        )
        if not self._acted:
            self._acted, self._following = self._reserve(acted), self._reserve(following)
        for columns, written in ((self._acted, acted), (self._following, following)):
            for key, column in columns.items():
                column[slots] = written[key]


def _rows(values: Tensor) -> NDArray[Any]:
    """Return ``(num_envs, T, *row)`` as ``(num_envs * T, *row)``."""
    return values.flatten(0, 1).numpy()
