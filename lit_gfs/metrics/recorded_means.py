"""Means of metrics over many steps, accumulated on the device of the values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_MAX_PENDING = 64
"""Number of values per tag that are kept before they are summed."""

Totals = dict[str, tuple[float, int]]
"""The sum of all elements of a value and their number, by tag."""


class RecordedMeans:
    """Means of tensors over all their elements, since the last call of `take`.

    Adding a value costs no arithmetic and no synchronization with the device. Values are kept, and summed a
    few dozen at a time.
    """

    def __init__(self) -> None:
        self._pending: dict[str, list[Tensor]] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def __bool__(self) -> bool:
        """Return whether values were added since the last call of `take`."""
        return bool(self._pending or self._sums)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add values of any shape by their tags; they must not be changed in place later."""
        for tag, value in values.items():
            pending = self._pending.setdefault(tag, [])
            pending.append(value.detach())
            if len(pending) == _MAX_PENDING:
                self._sum_pending(tag)

    def take(self) -> dict[str, float]:
        """Return the mean of all elements by tag, sorted, and reset."""
        if not self:
            return {}
        for tag in list(self._pending):
            self._sum_pending(tag)
        tags = sorted(self._sums)
        # Sums from a checkpoint are on the CPU; new ones may be on another device.
        device = max((total.device for total in self._sums.values()), key=lambda each: each.type != "cpu")
        means = torch.stack([self._sums[tag].to(device) / self._counts[tag] for tag in tags]).tolist()
        self._sums, self._counts = {}, {}
        return dict(zip(tags, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and numbers of elements so far, as plain data and tensors."""
        for tag in list(self._pending):
            self._sum_pending(tag)
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore saved sums and numbers, and discard all values added before."""
        self._pending = {}
        self._sums, self._counts = dict(state_dict["sums"]), dict(state_dict["counts"])

    def totals(self) -> Totals:
        """Return the sums and numbers of elements so far, as plain numbers for another process."""
        state = self.state_dict()
        return {tag: (float(total), state["counts"][tag]) for tag, total in state["sums"].items()}

    def _sum_pending(self, tag: str) -> None:
        values = torch.cat([value.reshape(-1) for value in self._pending.pop(tag)])
        total = values.sum(dtype=torch.float32)
        self._sums[tag] = self._sums[tag].to(total.device) + total if tag in self._sums else total
        self._counts[tag] = self._counts.get(tag, 0) + values.numel()


def merged_totals(parts: Iterable[Totals]) -> dict[str, Any]:
    """Merge the `RecordedMeans.totals` of several processes into a state for `load_state_dict`."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for part in parts:
        for tag, (total, count) in part.items():
            sums[tag] = sums.get(tag, 0.0) + total
            counts[tag] = counts.get(tag, 0) + count
    return {"sums": {tag: torch.tensor(total) for tag, total in sums.items()}, "counts": counts}
