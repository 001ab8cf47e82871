"""The current work of simulators, visible to other threads, and the errors that interrupt it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Activity:
    """The current work of an environment's simulators, readable from any thread."""

    calls: int = 0
    """Goes up when simulators begin some work and when they are done: it is odd while they work."""
    index: int | None = None
    """The simulator that works, or worked last; ``None`` where all work at once."""
    work: str = "a step"
    """The kind of work, for messages."""


class Misconduct(Exception):
    """Raised while a simulator works; the message says what it did, as in `EnvironmentFault`."""


class Unresponsive(Misconduct):
    """Raised in the stepping thread by `lit_gfs.collectors.step_timeout` when a simulator takes too long."""
