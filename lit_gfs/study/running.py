"""A cell that runs: how far it is, and how long it will take."""

from __future__ import annotations

import math
from typing import NamedTuple

from lit_gfs.utils.formats import format_duration

SECONDS_OF_A_RATE = 3.0
"""Time that a run's own speed has to be measured for."""


class Steps(NamedTuple):
    """Steps so far, and in the whole run if that has a limit."""

    done: int
    total: int | None


class Running:
    """The clock and the steps of a running cell.

    Args:
        now: Its start, in seconds of a monotonic clock.
        queued: Whether it waits in a queue, and starts when it first tells its steps.
    """

    def __init__(self, now: float, queued: bool = False) -> None:
        self.waits = queued
        self._started_at = now
        self.steps: Steps | None = None
        self._first = (now, 0)

    def advance(self, steps: Steps, now: float) -> None:
        """Note how far the run is. A resumed run begins above 0."""
        if self.steps is None:
            self._first = (now, steps.done)
        if self.waits:
            self.waits, self._started_at = False, now
        self.steps = steps

    def seconds(self, now: float) -> float:
        """Return the seconds since its start; 0 while it waits."""
        return 0.0 if self.waits else now - self._started_at

    def seconds_in_all(self, now: float) -> float | None:
        """Estimate from its own speed the seconds of the whole run; ``None`` if that is not known yet."""
        begun, first = self._first
        if self.steps is None or not self.steps.total or now - begun < SECONDS_OF_A_RATE:
            return None
        done = self.steps.done - first
        return self.steps.total * (now - begun) / done if done > 0 else None

    def share(self) -> float:
        """Return the share of its steps that are done."""
        if self.steps is None or not self.steps.total:
            return 0.0
        return min(1.0, self.steps.done / self.steps.total)

    def seconds_left(self, now: float) -> float | None:
        """Estimate from its own speed the seconds that the run still needs."""
        whole = self.seconds_in_all(now)
        return None if whole is None else whole * (1 - self.share())

    def __str__(self) -> str:
        """Write the steps, as in ``12,000/60,000 (20%)``."""
        if self.steps is None:
            return "starting"
        if self.steps.total is None:
            return f"{self.steps.done:,}"
        # A run is at 100% only when it has ended.
        return f"{self.steps.done:,}/{self.steps.total:,} ({math.floor(100 * self.share())}%)"

    def described(self, name: str, now: float) -> str:
        """Write the cell's name, its steps and its time so far."""
        return f"{name} {self}, {format_duration(self.seconds(now))}"
