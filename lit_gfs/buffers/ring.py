"""What the replay memories share: rows are appended, and can be written and read back in pieces."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrl.data.replay_buffers.storages import Storage

from lit_gfs.errors import UserError


class RingStorage(Storage):
    """A ring of rows, numbered from 0 in the order in which they are appended.

    A row is what is appended at once at least: a transition, or a transition of every environment. A storage
    that is restored from its sizes, its position and the rows from ``first_row`` to ``row_count`` gives what
    the saved one gives, now and after every further ``extend``.
    """

    @property
    @abstractmethod
    def row_count(self) -> int:
        """How many rows were ever appended, and so the number of the next one."""

    @property
    @abstractmethod
    def first_row(self) -> int:
        """The number of the oldest row with a transition that can be sampled."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the arguments that a storage must share to be restored from another one's rows."""

    @abstractmethod
    def position(self) -> dict[str, list[int]]:
        """Return what is not in the rows: counts and numbers, a list of whole numbers each."""

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
        """Set what `position` returns."""

    @abstractmethod
    def _write(self, first: int, last: int, rows: dict[str, Any]) -> None:
        """Copy what `rows` returned to its place, whatever was there before."""

    @abstractmethod
    def _empty(self) -> None:
        """Forget everything and give the memory back."""

    def restore(
        self, sizes: dict[str, int], position: dict[str, list[int]], pieces: Iterable[dict[str, Any]]
    ) -> None:
        """Replace what this storage holds by what another one held.

        Args:
            sizes: That storage's `sizes`.
            position: Its `position`.
            pieces: Its `rows` from ``first_row`` or before to ``row_count``, in parts, in order.

        Raises:
            UserError: If the sizes differ from those of this storage.
            ValueError: If rows are missing. If anything goes wrong, this storage is empty afterwards.
        """
        if sizes != self.sizes():
            raise UserError(f"the saved replay memory has {_listed(sizes)}; expected {_listed(self.sizes())}")
        self._empty()
        try:
            self._set_position(position)
            reached = self.first_row
            for rows in pieces:
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
        """Have what is appended next start new episodes, because the environments were reset from outside.

        There is nothing to do where no row depends on those before it.
        """

    @property
    def write_count(self) -> int:
        """How many transitions were ever appended."""
        return self.row_count

    def _indices(self, index: int | slice | Tensor) -> NDArray[np.int64]:
        """Return the transitions that an index names, in its shape.

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
        """Return whether there is a transition with this index."""
        return (item >= 0) & (item < len(self))

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        """Refuse: rows are appended.

        Raises:
            TypeError: Always.
        """
        name = type(self).__name__
        raise TypeError(f"a {name} cannot be written at an index; use extend, or a RolloutWriter")


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
