"""The base of the replay memories: a ring of rows, which can be copied out and restored in parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrl.data.replay_buffers.storages import Storage

from lit_gfs.errors import UserError, require_positive


class RingStorage(Storage):
    """A ring of rows, numbered from 0 in the order in which they are appended.

    A row is the least that can be appended: one transition, or one transition of every environment. `sizes`,
    `position` and the `rows` from ``first_row`` to ``row_count`` hold everything in a storage: one that is
    restored from them returns the same samples, now and after every further ``extend``.

    Transitions lie in slots, from which they do not move until they are overwritten; indices may shift.

    Args:
        max_size: Number of slots.
        n_step: Steps up to the next observation that `get` returns. With more than 1, rewards and flags are
            those of all of these steps, see `lit_gfs.functional.returns.n_step_return`. The steps end with
            the episode, and with the newest step of an environment.

    Raises:
        UserError: If there is less than one step.
    """

    def __init__(self, max_size: int, n_step: int = 1) -> None:
        super().__init__(max_size)
        require_positive(n_step=n_step)
        self.n_step = n_step
        self.dropped_slots: NDArray[np.int64] = np.zeros(0, np.int64)
        """Slots whose transitions the last ``extend`` dropped, although it did not overwrite them."""

    @abstractmethod
    def slots(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots of transitions."""

    @abstractmethod
    def index_of(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of the transitions in slots."""

    @property
    @abstractmethod
    def row_count(self) -> int:
        """Number of rows appended so far, and so the number of the next row."""

    @property
    @abstractmethod
    def first_row(self) -> int:
        """Number of the oldest row with a transition that can be sampled."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the arguments that must be equal in a storage that is restored from this one's rows."""

    @abstractmethod
    def position(self) -> dict[str, list[int]]:
        """Return the state that is not in the rows: lists of whole numbers, by name."""

    @abstractmethod
    def rows(self, first: int, last: int) -> dict[str, Any]:
        """Copy rows out.

        Args:
            first: The first row, ``first_row`` or later.
            last: The row after the last one, up to ``row_count``.

        Returns:
            Tensors, nested in dictionaries; under ``numbers`` are ``first`` and ``last``.
        """

    @abstractmethod
    def _set_position(self, position: dict[str, list[int]]) -> None:
        """Set the state that `position` returned."""

    @abstractmethod
    def _write(self, first: int, last: int, rows: dict[str, Any]) -> None:
        """Write the result of `rows` to its place in the ring."""

    @abstractmethod
    def _empty(self) -> None:
        """Remove all transitions and free the memory."""

    def restore(
        self, sizes: dict[str, int], position: dict[str, list[int]], parts: Iterable[dict[str, Any]]
    ) -> None:
        """Replace the content of this storage by that of a saved one.

        Args:
            sizes: `sizes` of the saved storage.
            position: Its `position`.
            parts: Its `rows` in order, from ``first_row`` or before to ``row_count``.

        Raises:
            UserError: If the sizes differ from those of this storage.
            ValueError: If rows are missing. After any exception, this storage is empty.
        """
        if sizes != self.sizes():
            raise UserError(f"the saved replay memory has {_listed(sizes)}; expected {_listed(self.sizes())}")
        self._empty()
        try:
            self._set_position(position)
            reached = self.first_row
            for rows in parts:
                first, last = rows["numbers"].tolist()
                if not first <= reached < last:
                    raise ValueError(f"expected row {reached} in a piece with the rows {first} to {last}")
                self._write(first, last, rows)
                reached = last
            if reached != self.row_count:
                raise ValueError(f"the rows {reached} to {self.row_count} are missing")
        except BaseException:
            self._empty()
            raise

    def end_episodes(self) -> None:
        """Let the next rows begin new episodes, because the environments were reset from outside.

        Storages whose rows do not depend on earlier ones have nothing to do.
        """

    @property
    def write_count(self) -> int:
        """Number of transitions appended so far."""
        return self.row_count

    def _indices(self, index: int | slice | Tensor) -> NDArray[np.int64]:
        """Return the transitions of an index, in its shape.

        Raises:
            IndexError: If one is negative or not less than ``len(self)``.
        """
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        at = np.asarray(index)
        if ((at < 0) | (at >= len(self))).any():
            raise IndexError(f"an index is out of range; expected 0 to {len(self) - 1}")
        return at

    def contains(self, item: int | Tensor) -> bool | Tensor:
        """Say whether a transition has this index."""
        return (item >= 0) & (item < len(self))

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        """Refuse to write at an index: rows can only be appended.

        Raises:
            TypeError: Always.
        """
        name = type(self).__name__
        raise TypeError(f"a {name} cannot be written at an index; use extend, or a RolloutWriter")


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
