"""How a run ends that does not finish: in one line and with a status, rather than with a traceback."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_gfs.callbacks.graceful_stop import GracefulStop, RunStopped, keep_traceback, resume_advice
from lit_gfs.callbacks.summary import relative_path
from lit_gfs.checkpoints import newest_intact
from lit_gfs.errors import EnvironmentFault, StorageFault
from lit_gfs.sealed import UnwritableFile

_STORAGE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
}
"""What the operating system says of a disk that cannot be written any more."""


@contextlib.contextmanager
def told_in_one_line(stop: GracefulStop, directory: Path) -> Iterator[None]:
    """Turn what ends a run in mid-course into an exception whose message is one line that says how to go on.

    Args:
        stop: The run's own.
        directory: Where the run has its checkpoints.

    Raises:
        RunStopped: If the run was stopped by a signal.
        EnvironmentFault: If an environment failed; its traceback is in a file.
        StorageFault: If a file of the run could not be written.
        KeyboardInterrupt: If it was interrupted before there was anything to save.
    """
    with _quiet_writers():
        try:
            yield
        except SIGTERMException:
            # Without one of ours, it was Lightning's handler, or another process of this run.
            raise RunStopped(stop.signal or signal.SIGTERM, resume_advice(stop.checkpoint)) from None
        except RunStopped as again:
            earlier = directory if any(directory.glob("*.ckpt")) else None
            raise RunStopped(again.number, f" at once{resume_advice(earlier)}") from None
        except SystemExit as end:
            # What Lightning makes of a Ctrl-C that nobody else has taken.
            if isinstance(end.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        except EnvironmentFault as fault:
            if not fault.advice:
                keep_traceback(fault, directory)
            raise
        except UnwritableFile as error:
            raise _storage_fault(str(error), directory) from error
        except OSError as error:
            if error.errno not in _STORAGE_ERRORS:
                raise
            place = error.filename or directory
            raise _storage_fault(f"cannot write {place}: {error.strerror}", directory) from error


def _storage_fault(what: str, directory: Path) -> StorageFault:
    checkpoint, _ = newest_intact(directory)
    if checkpoint is None:
        return StorageFault(f"{what}; there is no intact checkpoint in {relative_path(directory)}")
    return StorageFault(
        f"{what}; the newest intact checkpoint is {relative_path(checkpoint)}{resume_advice(checkpoint)}"
    )


@contextlib.contextmanager
def _quiet_writers() -> Iterator[None]:
    """Have threads that write files say nothing of a full disk: it is told once, where they were asked to."""
    previous = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if not (isinstance(error, OSError) and error.errno in _STORAGE_ERRORS):
            previous(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous
