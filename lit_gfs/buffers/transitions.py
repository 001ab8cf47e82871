"""Replay memory for vectors, and for images that are not frame stacks: it stores whole observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from lit_gfs.buffers.n_step import last_real, outcome
from lit_gfs.buffers.ring import RingStorage
from lit_gfs.errors import require_positive

_KEYS = ("observation", "action")
_NEXT_KEYS = ("observation", "reward", "done", "terminated", "truncated")
_OPTIONAL = ("end_of_life",)


class TransitionStorage(RingStorage):
    """A ring of transitions, with one array for each entry.

    Index ``i < len(storage)`` is slot ``i`` of the ring, as in TorchRL's ``LazyTensorStorage`` with its
    round-robin writer; a rollout is appended environment by environment. TorchRL's storage uses the general
    indexing of tensordicts, which takes several times as long as reading a few small entries.

    For returns of several steps, each transition also has the number of the one before it in its environment.

    Args:
        capacity: Most transitions kept.
        n_step: Steps up to the next observation of a sampled transition, see `RingStorage`.

    Raises:
        UserError: If the capacity or the number of steps is less than 1.
    """

    def __init__(self, capacity: int, n_step: int = 1) -> None:
        require_positive(capacity=capacity)
        super().__init__(capacity, n_step)
        self._empty()

    def _empty(self) -> None:
        """Remove all transitions and free the memory."""
        self._columns: dict[str, NDArray[Any]] = {}
        self._next: dict[str, NDArray[Any]] = {}
        self._count = 0  # transitions appended so far
        # For each slot, the number of the transition before it in its environment, and the slot of the one
        # after it; -1 if there is none. Neither is needed for single steps.
        linked = self.max_size if self.n_step > 1 else 0
        self._previous = np.full(linked, -1, np.int64)
        self._following = np.full(linked, -1, np.int64)
        self._newest: list[int] = []  # the number of each environment's newest transition

    def extend(self, rollout: TensorDictBase) -> Tensor:
        """Append a rollout.

        Args:
            rollout: ``(num_envs, T)`` on the CPU: ``observation``, ``action``, and under ``next``
                ``observation``, ``reward``, ``done``, ``terminated``, ``truncated`` and optionally
                ``end_of_life``. Other keys are dropped.

        Returns:
            The slots of the appended transitions, ``(num_envs * T,)``. A rollout larger than the ring leaves
            only its last transitions.
        """
        next_ = rollout["next"]
        optional = [key for key in _OPTIONAL if key in (self._next or next_.keys())]
        rows = {key: _rows(rollout[key]) for key in _KEYS}
        next_rows = {key: _rows(next_[key]) for key in (*_NEXT_KEYS, *optional)}
        if not self._columns:
            self._columns = self._reserve(rows)
            self._next = self._reserve(next_rows)
        size = rollout.numel()
        slots = (self._count + np.arange(size)) % self.max_size
        # A rollout larger than the ring would write some slots twice: only its last transitions are written.
        kept = slice(max(0, size - self.max_size), size)
        for columns, written in ((self._columns, rows), (self._next, next_rows)):
            for key, column in columns.items():
                column[slots[kept]] = written[key][kept]
        self._count += size
        if self.n_step > 1:
            self._link_rollout(*rollout.shape)
        return torch.from_numpy(slots)

    def _link_rollout(self, num_envs: int, steps: int) -> None:
        """Note which transitions follow each other in the rollout that was just appended."""
        numbers = self._count + np.arange(-num_envs * steps, 0).reshape(num_envs, steps)
        previous = numbers - 1
        previous[:, 0] = self._newest or -1
        self._newest = numbers[:, -1].tolist()
        is_kept = numbers >= self.first_row
        self._link(numbers[is_kept], previous[is_kept])

    def _link(self, numbers: NDArray[np.int64], previous: NDArray[np.int64]) -> None:
        slots = numbers % self.max_size
        self._previous[slots] = previous
        self._following[slots] = -1
        is_there = (previous >= 0) & (previous >= self.first_row)
        self._following[previous[is_there] % self.max_size] = slots[is_there]

    def end_episodes(self) -> None:
        """Let no transition follow on those that are the newest now: the environments were reset."""
        self._newest = []

    def _reserve(self, rows: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # Zeros take no memory until they are overwritten.
        return {key: np.zeros((self.max_size, *row.shape[1:]), row.dtype) for key, row in rows.items()}

    def get(self, index: int | slice | Tensor) -> TensorDict:
        """Return copies of transitions.

        Args:
            index: Which of the ``len(storage)`` transitions; a tensor may have any shape.

        Returns:
            A TensorDict with the shape of ``index``, and with the keys that `extend` keeps.

        Raises:
            IndexError: If an index is negative or not less than ``len(storage)``.
        """
        at = self._indices(index)
        at_start = _taken(self._columns, at)
        at_next = _taken(self._next, at) if self.n_step == 1 else self._outcome(at)
        # The public constructor checks every entry, which takes longer than copying them.
        shape = torch.Size(at.shape)
        entries: dict[str, Any] = {**at_start, "next": TensorDict._new_unsafe(at_next, batch_size=shape)}
        return TensorDict._new_unsafe(entries, batch_size=shape)

    def _outcome(self, at: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return what follows on the steps that begin in slots ``(*batch,)``."""
        slots, is_real = [at], [np.ones(at.shape, np.bool_)]
        done = self._next["done"].squeeze(-1)
        for _ in range(self.n_step - 1):
            following = self._following[slots[-1]]
            is_real.append(is_real[-1] & ~done[slots[-1]] & (following >= 0))
            slots.append(np.where(is_real[-1], following, slots[-1]))
        flags = {key: column for key, column in self._next.items() if key != "observation"}
        path, real = np.stack(slots, -1), np.stack(is_real, -1)
        return {
            **_taken({"observation": self._next["observation"]}, last_real(path, real)),
            **outcome(flags, path, real),
        }

    def slots(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots of transitions: their indices."""
        return index

    def index_of(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of the transitions in slots: the slots."""
        return slots

    def __len__(self) -> int:
        """Return the number of transitions that can be sampled."""
        return min(self._count, self.max_size)

    @property
    def row_count(self) -> int:
        """Number of transitions appended so far, and so the number of the next one."""
        return self._count

    @property
    def first_row(self) -> int:
        """Number of the oldest transition."""
        return max(0, self._count - self.max_size)

    def sizes(self) -> dict[str, int]:
        """Return the capacity."""
        return {"capacity": self.max_size}

    def position(self) -> dict[str, list[int]]:
        """Return the numbers of transitions appended so far, and of each environment's newest one."""
        return {"row_count": [self._count], "newest": self._newest}

    def rows(self, first: int, last: int) -> dict[str, Any]:
        """Copy transitions out: ``(last - first, *row)`` of each entry; see `RingStorage.rows`."""
        slots = np.arange(first, last) % self.max_size

        def at_slots(columns: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
            return {key: torch.from_numpy(column[slots]) for key, column in columns.items()}

        links = {"previous": torch.from_numpy(self._previous[slots])} if self.n_step > 1 else {}
        return {
            **links,
            "numbers": torch.tensor([first, last]),
            # Files on disk have these two keys.
            "acted": at_slots(self._columns),
            "following": at_slots(self._next),
        }

    def _set_position(self, position: dict[str, list[int]]) -> None:
        (self._count,) = position["row_count"]
        self._newest = position.get("newest", [])

    def _write(self, first: int, last: int, rows: dict[str, Any]) -> None:
        slots = np.arange(first, last) % self.max_size
        if self.n_step > 1:
            self._link(np.arange(first, last), rows["previous"].numpy())
        at_start, at_next = (
            {key: column.numpy() for key, column in rows[name].items()} for name in ("acted", "following")
        )
        if not self._columns:
            self._columns, self._next = self._reserve(at_start), self._reserve(at_next)
        for columns, written in ((self._columns, at_start), (self._next, at_next)):
            for key, column in columns.items():
                column[slots] = written[key]


def _rows(values: Tensor) -> NDArray[Any]:
    """Return ``(num_envs, T, *row)`` as ``(num_envs * T, *row)``."""
    return values.flatten(0, 1).cpu().numpy()


def _taken(columns: dict[str, NDArray[Any]], at: NDArray[np.int64]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(column.take(at, 0))) for key, column in columns.items()}
