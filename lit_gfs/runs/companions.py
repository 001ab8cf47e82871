"""Ends all processes of one run together: the failed process says why, the others end silently.

Each process watches the others from a thread, because a collective operation may wait forever for a process
that is gone. A failed process announces its exit status in the key-value store through which the processes
found each other. Processes that Lightning has started are also children of the first process, which sees how
they end. So the user does not have to infer a failed process from another one's traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from subprocess import Popen, TimeoutExpired
from types import FrameType
from typing import Any, cast

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import distributed

from lit_gfs.errors import OtherProcessFailed, RunFault, RunStopped, UserError
from lit_gfs.runs.announcements import PERIOD_SECONDS, Announcements, announce

GRACE_SECONDS = 5.0
"""Time for a process to end by itself, once another one has failed."""
PATIENCE_SECONDS = 60.0
"""Time for a process to end after the others have finished."""
_SIGNAL = getattr(signal, "SIGUSR2", None)


@contextlib.contextmanager
def ending_together(trainer: Trainer, discard: Callable[[], None]) -> Iterator[None]:
    """End all processes of a run with the status of the one that failed first; only that one says why.

    Args:
        trainer: The run's Trainer.
        discard: Removes the files of a run that does not begin, if this process has to be ended.

    Raises:
        OtherProcessFailed: If another process failed first, instead of the error that this caused here.
    """
    if trainer.world_size == 1:
        yield
        return
    companions = Companions(trainer, discard)
    companions.watch()
    try:
        yield
    except BaseException as error:
        companions.settle(error)
        raise
    else:
        companions.finish()
    finally:
        companions.leave()


class Companions:
    """The other processes of a run, from the view of one of them.

    Args:
        trainer: The Trainer of several processes, before it starts or joins them.
        discard: As for `ending_together`.
    """

    def __init__(self, trainer: Trainer, discard: Callable[[], None]) -> None:
        self._trainer = trainer
        self._discard = discard
        self._announcements = Announcements()
        self._failed: OtherProcessFailed | None = None
        self._lock = threading.Lock()
        self._ends_itself = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="companions", daemon=True)
        self._previous: Any = None

    def watch(self) -> None:
        """Watch the others: if one fails, interrupt this process, and end it if that has no effect."""
        if _SIGNAL is not None and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(_SIGNAL, self._on_signal)
        self._thread.start()

    def leave(self) -> None:
        """Stop watching."""
        self._ends_itself.set()
        self._thread.join()
        if self._previous is not None:
            signal.signal(cast(int, _SIGNAL), self._previous)

    def settle(self, error: BaseException) -> None:
        """Announce the end of this process; return if this process has to tell the user why.

        Args:
            error: The error that ends it.

        Raises:
            OtherProcessFailed: If another process tells the user, or none is left that could.
        """
        self._ends_itself.set()
        failed = error if isinstance(error, OtherProcessFailed) else self._other_to_tell(error)
        # The children may wait for this process in vain, unless they were stopped with it.
        goes_alone = failed is None and not isinstance(error, RunStopped | KeyboardInterrupt)
        self._end_children(1.0 if goes_alone else GRACE_SECONDS)
        if failed is not None:
            # A launcher may end all processes as soon as one has ended: let the other one tell first.
            time.sleep(1.0)
            raise failed from None

    def finish(self) -> None:
        """Wait until the children of this process have finished.

        Raises:
            OtherProcessFailed: If one of them fails.
        """
        self._ends_itself.set()
        self._end_children(PATIENCE_SECONDS)
        if failed := self._failed_child():
            raise failed

    def _other_to_tell(self, error: BaseException) -> OtherProcessFailed | None:
        status = _status_of(error)
        if isinstance(error, RunStopped | KeyboardInterrupt):
            # All stop together, and the first process tells how to go on.
            announce(status)
            return None if self._trainer.is_global_zero else OtherProcessFailed(status)
        if status == 1 and self._hears_within(1.0):
            return self._failed  # it caused this process's error
        if _is_lost_connection(error):
            announce(status)
            return OtherProcessFailed(status, "error: lost the connection to another process of this run")
        if announce(status):
            return None
        return self._failed if self._hears_within(1.0) else OtherProcessFailed(status)

    # -- listening ---------------------------------------------------------------------------------------

    def _hears_within(self, seconds: float) -> bool:
        """Return whether another process announces a failure within some seconds."""
        deadline = time.monotonic() + seconds
        while not self._hears():
            if time.monotonic() > deadline:
                return False
            time.sleep(PERIOD_SECONDS / 4)
        return True

    def _hears(self) -> bool:
        with self._lock:
            if self._failed is None:
                self._failed = self._announced()
            return self._failed is not None

    def _announced(self) -> OtherProcessFailed | None:
        try:
            announced = self._announcements.first()
        except RuntimeError:
            return OtherProcessFailed(1, "error: lost the first process of this run")
        if announced is None:
            return self._failed_child()
        rank, status = announced
        return None if rank == self._trainer.global_rank else self._with_status(status)

    def _with_status(self, status: int) -> OtherProcessFailed:
        # The first process reports a signal, whether one process received it or all of them.
        if status > 128 and self._trainer.is_global_zero:
            return OtherProcessFailed(status, f"stopped by {signal.Signals(status - 128).name}")
        return OtherProcessFailed(status)

    # -- children ----------------------------------------------------------------------------------------

    @property
    def _children(self) -> list[Popen[bytes]]:
        """The processes that this one has started."""
        return list(getattr(cast(Any, self._trainer).strategy.launcher, "procs", ()))

    def _failed_child(self) -> OtherProcessFailed | None:
        codes = [child.poll() for child in self._children]
        for rank, code in enumerate(codes, start=1):
            if code is not None and code < 0:
                name = signal.Signals(-code).name
                return OtherProcessFailed(
                    128 - code, f"error: process {rank} of this run was ended by {name}"
                )
            if code:
                return self._with_status(code)
        return None

    def _end_children(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for child in self._children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except TimeoutExpired:
                child.kill()
                child.wait()

    # -- interrupting ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._ends_itself.wait(PERIOD_SECONDS):
            if self._children:
                _replace_observer()
            if self._hears():
                self._end()
                return

    def _end(self) -> None:
        seconds = PATIENCE_SECONDS if self._is_on_its_way_out() else GRACE_SECONDS
        if self._previous is not None:
            signal.pthread_kill(self._main, cast(int, _SIGNAL))
        if self._ends_itself.wait(seconds):
            return
        # The main thread waits in compiled code for a process that is gone.
        assert self._failed is not None
        self._end_children(0.0)
        for logger in self._trainer.loggers:
            logger.finalize("failed")
        self._discard()
        if self._failed.message:
            print("lit_gfs:", self._failed.message, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self._failed.status)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._failed is None:
            if callable(self._previous):
                self._previous(number, frame)
        elif not self._is_on_its_way_out():
            raise self._failed

    def _is_on_its_way_out(self) -> bool:
        is_interrupted = self._trainer.state.status == TrainerStatus.INTERRUPTED
        return is_interrupted or self._ends_itself.is_set()


def _replace_observer() -> None:
    """Take the children away from Lightning's own thread, which kills all processes if one fails."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []


def _status_of(error: BaseException) -> int:
    """Return the exit status of the command line for an error."""
    if isinstance(error, UserError | MisconfigurationException):
        return 2
    if isinstance(error, RunFault):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 1


def _is_lost_connection(error: BaseException) -> bool:
    kinds = (distributed.DistNetworkError, distributed.DistBackendError)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "gloo" in str(error))
