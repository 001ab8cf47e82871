"""A time limit for single steps of environments."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from lit_gfs.envs.activity import Activity, Unresponsive
from lit_gfs.errors import EnvironmentFault

GRACE_SECONDS = 5.0
"""Seconds from the interruption of a simulator until the run is ended without it."""


class _Call(NamedTuple):
    """One simulator's piece of work, and when the thread first saw it."""

    calls: int
    simulator: int | None
    since: float

    @property
    def is_work(self) -> bool:
        """Whether simulators work at all, see `Activity.calls`."""
        return self.calls % 2 == 1

    def is_current(self, activity: Activity) -> bool:
        """Say whether the same simulator is still at the same work."""
        return (activity.calls, activity.index) == (self.calls, self.simulator)


class StepTimeout:
    """A thread that watches environments, and ends a step, a reset or a closing that takes too long.

    First it interrupts the work by a signal, whose handler raises an exception in the stepping thread. This
    ends Python code, and waiting. A simulator that hangs in compiled code does not notice: after some seconds
    the watching thread calls ``give_up``, while the stepping thread is stuck. Compiled code that keeps the
    interpreter lock cannot be ended from within the process, as no other thread runs beside it.

    The watch costs environments nothing: they count their work anyway (`lit_gfs.envs.activity.Activity`).

    Args:
        timeout: Seconds that one simulator's step may take, or a reset, or closing.
        give_up: Called with the fault when the interruption has no effect. It must not return.
    """

    def __init__(self, timeout: float, give_up: Callable[[EnvironmentFault], None]) -> None:
        self.timeout = timeout
        self._give_up = give_up
        self._watched: list[tuple[str, Activity]] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._signal: Any = getattr(signal, "SIGUSR2", None)
        self._previous_handler: Any = None
        self._can_interrupt = False
        self._has_sent_signal = False
        self._stepping_thread = threading.get_ident()
        self._overdue: tuple[Activity, _Call] | None = None
        self._has_given_up = False

    def watch(self, env_id: str, activity: Activity) -> None:
        """Watch an environment that the calling thread steps."""
        self._watched.append((env_id, activity))
        if self._thread is not None:
            return
        self._stepping_thread = threading.get_ident()
        # Only the main thread has signal handlers.
        if self._signal is not None and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.getsignal(self._signal)
            # A handler that was not set in Python could not be put back.
            self._can_interrupt = self._previous_handler is not None
            if self._can_interrupt:
                signal.signal(self._signal, self._on_signal)
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, name="step-timeout", daemon=True)
        self._thread.start()

    def keep_signal(self) -> None:
        """Set the signal handler again, in case the previous one was put back: Lightning does that."""
        if self._can_interrupt and threading.current_thread() is threading.main_thread():
            signal.signal(self._signal, self._on_signal)

    def stop(self) -> None:
        """Stop watching all environments."""
        self._stopped.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if self._can_interrupt and threading.current_thread() is threading.main_thread():
            # Other code may have set a handler of its own since.
            if signal.getsignal(self._signal) == self._on_signal:
                signal.signal(self._signal, self._previous_handler)
            self._can_interrupt = False
        self._watched.clear()

    def _run(self) -> None:
        latest: dict[int, _Call] = {}
        while not self._stopped.wait(min(1.0, self.timeout / 4)):
            for number, (env_id, activity) in enumerate(list(self._watched)):
                call = latest.get(number)
                if call is None or not call.is_current(activity):
                    latest[number] = _Call(activity.calls, activity.index, time.monotonic())
                elif call.is_work and time.monotonic() - call.since > self.timeout:
                    self._end(env_id, activity, call)

    def _end(self, env_id: str, activity: Activity, call: _Call) -> None:
        self._overdue = (activity, call)
        if self._can_interrupt and signal.getsignal(self._signal) == self._on_signal:
            self._has_sent_signal = True
            signal.pthread_kill(self._stepping_thread, self._signal)
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline and not self._stopped.wait(0.05):
                if not call.is_current(activity):
                    return
        if self._stopped.is_set():
            return
        self._has_given_up = True
        fault = EnvironmentFault(env_id, call.simulator, self._complaint(activity))
        stack = traceback.format_stack(sys._current_frames()[self._stepping_thread])
        fault.add_note("".join(["It was here:\n", *stack]))
        self._give_up(fault)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._has_sent_signal:
            self._has_sent_signal = False
            self._interrupt()
        # The signal came from elsewhere: do what would have been done without this handler.
        elif callable(self._previous_handler):
            self._previous_handler(number, frame)
        elif self._previous_handler == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _interrupt(self) -> None:
        while self._has_given_up:
            # Too late: the watching thread saves the run now and then ends the process. Nothing may change.
            time.sleep(1.0)
        if self._overdue is not None and self._overdue[1].is_current(self._overdue[0]):
            raise Unresponsive(self._complaint(self._overdue[0]))

    def _complaint(self, activity: Activity) -> str:
        return f"did not come back from {activity.work} within {self.timeout:g} s (data.step_timeout)"


def end_process(status: int) -> None:
    """End the process although one of its threads is stuck."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
