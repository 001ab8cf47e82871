"""A study's hold on its directory: a lock on one machine, and a lease among machines."""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from lit_gfs.errors import UserError
from lit_gfs.runs.storage_errors import is_storage_error
from lit_gfs.study.lease import (
    LEASE_SECONDS,
    RENEWAL_SECONDS,
    HeldLease,
    Lease,
    LeaseLost,
    Watch,
    process_table,
    read_lease,
    remove_lease,
)

LOCK_NAME = ".lock"
NAME = "study"
"""The name of a study in the lease of its directory."""


@contextlib.contextmanager
def locked(
    directory: Path, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> Iterator[threading.Event]:
    """Make a directory, and hold it against other studies until this process ends, in any way.

    A lock keeps out other studies of this machine, if the file system has locks. A lease keeps out those of
    other machines. One that was left behind there delays this study by up to `LEASE_SECONDS`.

    Args:
        directory: The study's directory.
        clock: Returns the time, in seconds.
        sleep: Waits for so many seconds.

    Yields:
        An event that is set if another study takes the directory over, because this process stood still.

    Raises:
        UserError: If another study holds the directory, or it cannot be written.
        OSError: If the disk is full, or fails.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK_NAME).open("a")
    except OSError as error:
        if is_storage_error(error) and error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        raise UserError(
            f"{str(directory)!r} cannot be written ({error.strerror}); name another --root"
        ) from error
    with file:
        has_locks = _lock(file, directory)
        _await_end(directory, has_locks, clock, sleep)
        is_lost = threading.Event()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(HeldLease(directory, NAME, is_lost.set))
            except LeaseLost as error:  # two studies began at the same time
                raise _occupied(directory, read_lease(directory)) from error
            yield is_lost


def _lock(file: IO[str], directory: Path) -> bool:
    """Lock a file, and return whether its file system has locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise _occupied(directory, read_lease(directory)) from None
    except OSError:
        return False
    return True


def _await_end(
    directory: Path, has_locks: bool, clock: Callable[[], float], sleep: Callable[[float], None]
) -> None:
    """Remove the lease of a study that has ended; wait until that is sure.

    Raises:
        UserError: If that study is alive.
    """
    first, watch = read_lease(directory), Watch(clock())
    lease = first
    while lease is not None and watch.is_alive(lease, clock()):
        if has_locks and lease.processes == process_table():
            break  # a study of this machine would hold the lock
        if first is None or (lease.owner, lease.beat) != (first.owner, first.beat):
            raise _occupied(directory, lease)
        if lease is first:
            print(
                f"a study of {lease.host} was at work in '{directory}'; "
                f"waiting up to {LEASE_SECONDS:.0f} seconds to see whether it still is",
                file=sys.stderr,
            )
        sleep(RENEWAL_SECONDS)
        lease = read_lease(directory)
    remove_lease(directory)


def _occupied(directory: Path, lease: Lease | None) -> UserError:
    where = f" by process {lease.pid} of {lease.host}" if lease is not None and lease.owner else ""
    return UserError(f"a study is running in {str(directory)!r}{where}; wait for it, or stop it")
