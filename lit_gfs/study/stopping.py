"""Signals that stop a study."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from lit_gfs.utils.stop_signals import unclaimed_signals


class StopRequest(threading.Event):
    """An event that a signal sets."""

    signal: int | None = None
    """The first signal."""

    def set_by(self, number: int, frame: FrameType | None) -> None:
        """Set the event and note the signal: a handler for `signal.signal`."""
        self.signal = self.signal or number
        self.set()


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[StopRequest]:
    """Turn Ctrl-C, SIGTERM and the like into an event, so that they do not interrupt a step half-way.

    Signals that the process ignores (``nohup``) or already handles are left alone.
    """
    stop = StopRequest()
    previous = unclaimed_signals()
    for number in previous:
        signal.signal(number, stop.set_by)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
