"""Means over many steps, gathered where the values are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_MOST_PENDING = 64

Totals = dict[str, tuple[float, int]]
"""The sum of a value's elements and their number, by tag."""


class RecordedMeans:
    """Means of tensors over all their elements, since they were last taken.

    Adding a value costs no arithmetic and no host synchronization: values are kept as they come and summed up
    together, a few dozen at a time.
    """

    def __init__(self) -> None:
        self._pending: dict[str, list[Tensor]] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def __bool__(self) -> bool:
        """Whether anything was added since the means were last taken."""
        return bool(self._pending or self._sums)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add values of any shape, which nobody writes to later."""
        for tag, value in values.items():
            pending = self._pending.setdefault(tag, [])
            pending.append(value.detach())
            if len(pending) == _MOST_PENDING:
                self._sum_up(tag)

    def take(self) -> dict[str, float]:
        """Return the mean of each value's elements, sorted by tag, and begin anew."""
        if not self:
            return {}
        for tag in list(self._pending):
            self._sum_up(tag)
        tags = sorted(self._sums)
        # A checkpoint's sums are on the CPU; new ones may be elsewhere.
        device = max((total.device for total in self._sums.values()), key=lambda each: each.type != "cpu")
        means = torch.stack([self._sums[tag].to(device) / self._counts[tag] for tag in tags]).tolist()
        self._sums, self._counts = {}, {}
        return dict(zip(tags, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and counts of elements so far, as plain data and tensors."""
        for tag in list(self._pending):
            self._sum_up(tag)
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with sums and counts, in the place of what was added since."""
        self._pending = {}
        self._sums, self._counts = dict(state_dict["sums"]), dict(state_dict["counts"])

    def totals(self) -> Totals:
        """Return the sums and counts of elements so far, as numbers that another process can read."""
        state = self.state_dict()
        return {tag: (float(total), state["counts"][tag]) for tag, total in state["sums"].items()}

    def _sum_up(self, tag: str) -> None:
        values = torch.cat([value.reshape(-1) for value in self._pending.pop(tag)])
        total = values.sum(dtype=torch.float32)
        self._sums[tag] = self._sums[tag].to(total.device) + total if tag in self._sums else total
        self._counts[tag] = self._counts.get(tag, 0) + values.numel()


def united(parts: Iterable[Totals]) -> dict[str, Any]:
    """Return the state of means over what several processes have added, each of its own `totals`."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for part in parts:
        for tag, (total, count) in part.items():
            sums[tag] = sums.get(tag, 0.0) + total
            counts[tag] = counts.get(tag, 0) + count
    return {"sums": {tag: torch.tensor(total) for tag, total in sums.items()}, "counts": counts}
