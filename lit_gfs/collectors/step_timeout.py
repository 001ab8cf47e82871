"""Notices simulators that do not come back from a step."""

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

from lit_gfs.envs.base import Activity, Unresponsive
from lit_gfs.errors import EnvironmentFault

GRACE_SECONDS = 5.0
"""How long an interrupted simulator has before the run is ended around it."""


class _Sight(NamedTuple):
    """Where a simulator was found at work, and since when."""

    calls: int
    simulator: int | None
    since: float

    def still_holds(self, activity: Activity) -> bool:
        return (activity.calls, activity.index) == (self.calls, self.simulator)


class StepTimeout:
    """A thread that reads what environments' simulators are at, and ends a step that takes too long.

    The same holds for a reset, and for closing them.

    It interrupts the step first, by an exception in the stepping thread, which ends waiting and Python code.
    A simulator that hangs in compiled code does not see it; after some seconds ``give_up`` is then called in
    the watchdog's thread, while the other one is stuck. Nothing in the process can end compiled code that
    keeps the interpreter lock, nor run beside it.

    Environments pay nothing: they count what they are at anyhow (`lit_gfs.envs.base.Activity`).

    Args:
        timeout: Seconds that one simulator's step, or a reset, may take.
        give_up: Called with the fault when the interruption has no effect; is not to return.
    """

    def __init__(self, timeout: float, give_up: Callable[[EnvironmentFault], None]) -> None:
        self.timeout = timeout
        self._give_up = give_up
        self._watched: list[tuple[str, Activity]] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._signal: Any = getattr(signal, "SIGUSR2", None)
        self._previous: Any = None
        self._can_interrupt = False
        self._asked = False
        self._stepping = threading.get_ident()
        self._suspect: tuple[Activity, _Sight] | None = None
        self._has_given_up = False

    def watch(self, env_id: str, activity: Activity) -> None:
        """Watch an environment from now on, which this thread steps."""
        self._watched.append((env_id, activity))
        if self._thread is not None:
            return
        self._stepping = threading.get_ident()
        # Only the main thread has signal handlers.
        if self._signal is not None and threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(self._signal)
            # A handler that was not set in Python could not be put back.
            self._can_interrupt = self._previous is not None
            if self._can_interrupt:
                signal.signal(self._signal, self._on_signal)
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def keep_signal(self) -> None:
        """Take the signal again, should somebody have put back what was there before: Lightning does."""
        if self._can_interrupt and threading.current_thread() is threading.main_thread():
            signal.signal(self._signal, self._on_signal)

    def stop(self) -> None:
        """Watch nothing any more."""
        self._stopped.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if self._can_interrupt and threading.current_thread() is threading.main_thread():
            # Unless somebody has taken the signal over since.
            if signal.getsignal(self._signal) == self._on_signal:
                signal.signal(self._signal, self._previous)
            self._can_interrupt = False
        self._watched.clear()

    def _run(self) -> None:
        seen: dict[int, _Sight] = {}
        while not self._stopped.wait(min(1.0, self.timeout / 4)):
            for number, (env_id, activity) in enumerate(list(self._watched)):
                sight = seen.get(number)
                if sight is None or not sight.still_holds(activity):
                    seen[number] = _Sight(activity.calls, activity.index, time.monotonic())
                elif sight.calls % 2 and time.monotonic() - sight.since > self.timeout:
                    self._end(env_id, activity, sight)

    def _end(self, env_id: str, activity: Activity, sight: _Sight) -> None:
        self._suspect = (activity, sight)
        if self._can_interrupt and signal.getsignal(self._signal) == self._on_signal:
            self._asked = True
            signal.pthread_kill(self._stepping, self._signal)
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline and not self._stopped.wait(0.05):
                if not sight.still_holds(activity):
                    return
        if self._stopped.is_set():
            return
        self._has_given_up = True
        fault = EnvironmentFault(env_id, sight.simulator, self._complaint(activity))
        stack = traceback.format_stack(sys._current_frames()[self._stepping])
        fault.add_note("".join(["It was here:\n", *stack]))
        self._give_up(fault)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._asked = False
            self._interrupt()
        elif callable(self._previous):
            self._previous(number, frame)
        elif self._previous == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _interrupt(self) -> None:
        while self._has_given_up:
            # Too late: the run is being saved as it stood in this step, and then the process ends.
            time.sleep(1.0)
        if self._suspect is not None and self._suspect[1].still_holds(self._suspect[0]):
            raise Unresponsive(self._complaint(self._suspect[0]))

    def _complaint(self, activity: Activity) -> str:
        return f"did not come back from {activity.work} within {self.timeout:g} s (data.step_timeout)"


def end_process(status: int) -> None:
    """End the process although one of its threads is stuck."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
