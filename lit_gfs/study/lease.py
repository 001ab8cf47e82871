"""Leases: a file that says which process is at work in a directory, and that it is alive.

The process renews its lease every few seconds by raising a counter, the beat. A reader takes a lease for dead
if its beat stays the same for `LEASE_SECONDS` of the reader's own clock, because the clocks of two machines
may differ. On the same machine, a lease is dead as soon as its process is.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

from lit_gfs.errors import RunFault
from lit_gfs.study.running import Steps

LEASE_NAME = "lease.json"
RENEWAL_SECONDS = 3.0
LEASE_SECONDS = 60.0
"""Network file systems may show an old file for half a minute or more."""
ABSENT_SECONDS = 10.0
LEASE_BYTES = 1024
"""The size of a lease: a beat overwrites the one before it."""


class LeaseLost(RunFault):
    """Another process has the lease."""

    status = 6


class Lease(NamedTuple):
    """The content of a lease.

    Attributes:
        owner: A random name of the process.
        host: The name of its machine.
        processes: The name of that machine's table of processes; `pid` is a process of that table.
        pid: Its process id.
        launcher: The name of the launcher that started it.
        beat: Number of renewals.
        done: Steps of the run so far, ``None`` before it has begun.
        total: Steps of the whole run, ``None`` without a limit.
    """

    owner: str = ""
    host: str = ""
    processes: str = ""
    pid: int = 0
    launcher: str = ""
    beat: int = 0
    done: int | None = None
    total: int | None = None

    @property
    def steps(self) -> Steps | None:
        """How far the run is."""
        return None if self.done is None else Steps(self.done, self.total)

    def is_surely_dead(self) -> bool:
        """Return whether its process was one of this machine, and is no more."""
        if self.processes != process_table() or sys.platform == "win32":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


@cache
def process_table() -> str:
    """Name this machine's table of processes: containers of one machine, and another boot, have others."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def read_lease(directory: Path) -> Lease | None:
    """Read the lease of a directory; ``None`` if there is none.

    A lease that cannot be read, as while it is written, is one without an owner.
    """
    try:
        return _parse((directory / LEASE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return Lease()


def _parse(content: str) -> Lease:
    try:
        return Lease(**json.loads(content))
    except (ValueError, TypeError):
        return Lease()


def remove_lease(directory: Path) -> None:
    """Take a lease away: its process notices that, and ends."""
    (directory / LEASE_NAME).unlink(missing_ok=True)


class HeldLease:
    """A lease of this process; use it as a context manager.

    Args:
        directory: The directory, which has to exist.
        launcher: The launcher's name.
        on_loss: Called in another thread, once, if another process has taken the lease.

    Raises:
        LeaseLost: On entry, if the directory has a lease; whoever knows that it is dead removes it first.
    """

    def __init__(self, directory: Path, launcher: str, on_loss: Callable[[], None]) -> None:
        self._directory = directory.absolute()  # the run may change the working directory
        self._lease = Lease(
            owner=uuid.uuid4().hex,
            host=socket.gethostname(),
            processes=process_table(),
            pid=os.getpid(),
            launcher=launcher,
        )
        self._steps: Steps | None = None
        self._on_loss = on_loss
        self._hurry = threading.Event()
        self._has_ended = threading.Event()
        self._renewal = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        try:
            with (self._directory / LEASE_NAME).open("x", encoding="utf-8") as file:
                file.write(self._content(beat=0))
        except FileExistsError:
            holder = read_lease(self._directory) or Lease()
            raise LeaseLost(
                f"process {holder.pid} of {holder.host} is at work in '{self._directory}'"
            ) from None
        self._renewal.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._hurry.set()
        self._renewal.join()
        self.release()

    def tell(self, done: int, total: int | None) -> None:
        """Note how far the run is, for the next renewal."""
        is_first = self._steps is None
        self._steps = Steps(done, total)
        if is_first:
            self._hurry.set()

    def is_held(self) -> bool:
        """Return whether no other process has taken the lease."""
        lease = read_lease(self._directory)
        return lease is not None and self._is_own(lease)

    def _is_own(self, lease: Lease) -> bool:
        return lease.owner in ("", self._lease.owner)

    def require(self) -> None:
        """Check that the lease is held.

        Raises:
            LeaseLost: If it is not.
        """
        if not self.is_held():
            raise LeaseLost(f"another process has taken over '{self._directory}'")

    def release(self) -> None:
        """Remove the lease, if it is held, and renew it no more."""
        self._has_ended.set()
        with suppress(OSError):
            if self.is_held():
                remove_lease(self._directory)

    def _renew(self) -> None:
        for beat in itertools.count(1):
            self._hurry.wait(RENEWAL_SECONDS)
            self._hurry.clear()
            if self._has_ended.is_set():
                return
            if not self._write(beat):
                self._on_loss()
                return

    def _write(self, beat: int) -> bool:
        """Raise the beat; return whether the lease is held.

        The content changes in the file that is open: if the lease is taken away meanwhile, the beat goes
        nowhere, and cannot bring the lease back.
        """
        try:
            with (self._directory / LEASE_NAME).open("r+", encoding="utf-8") as file:
                if not self._is_own(_parse(file.read())):
                    return False
                file.seek(0)
                file.write(self._content(beat))
        except FileNotFoundError:
            return False
        except OSError:
            pass  # a run survives a disk that fails for a moment; if it fails for long, the lease dies
        return True

    def _content(self, beat: int) -> str:
        done, total = self._steps or (None, None)
        lease = self._lease._replace(beat=beat, done=done, total=total)
        return json.dumps(lease._asdict()).ljust(LEASE_BYTES)


class Watch:
    """Watches the lease of another process.

    Args:
        now: The time, in seconds of a monotonic clock.
    """

    def __init__(self, now: float) -> None:
        self._sign: tuple[str, int] | None = None
        self._since = now

    def is_alive(self, lease: Lease | None, now: float) -> bool:
        """Return whether a lease is alive, as far as this reader knows at this time.

        A lease that is not there is alive for `ABSENT_SECONDS`, because a network file system may show an old
        state of the directory.
        """
        if lease is not None and lease.is_surely_dead():
            return False
        sign = None if lease is None else (lease.owner, lease.beat)
        if sign != self._sign:
            self._sign, self._since = sign, now
        return now - self._since < (ABSENT_SECONDS if lease is None else LEASE_SECONDS)
