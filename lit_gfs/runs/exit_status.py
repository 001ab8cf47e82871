"""The end of an unfinished run: one line and an exit status instead of a traceback."""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_gfs.errors import EnvironmentFault, RunStopped, StorageFault
from lit_gfs.runs.checkpoints import newest_intact
from lit_gfs.runs.storage_errors import describe_storage_error, is_storage_error
from lit_gfs.utils.atomic_files import replacing_text
from lit_gfs.utils.checksummed_files import UnwritableFile
from lit_gfs.utils.formats import relative_path
from lit_gfs.utils.working_directory import working_directory

ERROR_NAME = "error.txt"
"""File for the traceback of a fault, beside the checkpoints."""


class Stop(Protocol):
    """The stop of a run, see `lit_gfs.callbacks.graceful_stop.GracefulStop`."""

    signal: int | None
    """The signal that stopped the run."""
    checkpoint: Path | None
    """The latest checkpoint."""


@contextlib.contextmanager
def told_in_one_line(stop: Stop, directory: Path) -> Iterator[None]:
    """Turn errors that end a run early into exceptions with one line that says how to resume.

    Args:
        stop: The run's stop.
        directory: Directory of the run's checkpoints.

    Raises:
        RunStopped: If a signal stopped the run.
        EnvironmentFault: If an environment failed; its traceback is in a file.
        StorageFault: If a file of the run could not be written.
        KeyboardInterrupt: If the run was interrupted before there was anything to save.
    """
    own = None if directory == working_directory() else directory
    with _quiet_writers(own):
        try:
            yield
        except SIGTERMException:
            # Without our own signal, Lightning's handler or another process of this run raised it.
            raise RunStopped(stop.signal or signal.SIGTERM, resume_advice(stop.checkpoint)) from None
        except RunStopped as again:
            earlier = directory if _has_checkpoints(directory) else None
            raise RunStopped(again.number, f" at once{resume_advice(earlier)}") from None
        except SystemExit as end:
            # Lightning turns an unhandled Ctrl-C into this.
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
            if not is_storage_error(error, own):
                raise
            raise _storage_fault(describe_storage_error(error, directory), directory) from error


def keep_traceback(fault: EnvironmentFault, directory: Path) -> None:
    """Write the traceback of a fault to ``error.txt``, and add that path to the fault's message."""
    path = directory / ERROR_NAME
    try:
        with replacing_text(path) as file:
            file.writelines(traceback.format_exception(fault))
    except OSError as error:
        fault.advice += f"; its traceback could not be written to {path}: {error.strerror}"
    else:
        fault.advice += f"; the traceback is in {relative_path(path)}"


def resume_advice(checkpoint: Path | None) -> str:
    """Return the end of a line that says how to resume from a checkpoint."""
    if checkpoint is None:
        return "; no checkpoint was written"
    return f"; to go on: python -m lit_gfs fit --ckpt_path {shlex.quote(relative_path(checkpoint))}"


def _has_checkpoints(directory: Path) -> bool:
    try:
        return any(directory.glob("*.ckpt"))
    except OSError:
        return False


def _storage_fault(what: str, directory: Path) -> StorageFault:
    checkpoint = None
    with contextlib.suppress(OSError):  # an unreadable directory offers no checkpoint
        checkpoint, _ = newest_intact(directory)
    if checkpoint is None:
        return StorageFault(what, f"; there is no intact checkpoint in {relative_path(directory)}")
    return StorageFault(
        what, f"; the newest intact checkpoint is {relative_path(checkpoint)}{resume_advice(checkpoint)}"
    )


@contextlib.contextmanager
def _quiet_writers(directory: Path | None) -> Iterator[None]:
    """Silence errors of the storage in threads that write files: the main thread reports them once."""
    previous = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not is_storage_error(arguments.exc_value, directory):
            previous(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous
