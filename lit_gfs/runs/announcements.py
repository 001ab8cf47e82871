"""Announcements by which a process of a run tells the others that it ends.

They use the key-value store through which the processes found each other, with a separate connection, because
the process group's own may be blocked.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

from torch import distributed

PERIOD_SECONDS = 0.2
"""Seconds between two looks of the other processes."""
_KEY = "ending"
_TIMEOUT = timedelta(seconds=5)


def announce(status: int) -> bool:
    """Tell the other processes of the run that this one ends it.

    Args:
        status: Its exit status, which all processes take over.

    Returns:
        Whether it is the first to announce its end; the first process tells the user why.
    """
    try:
        store = _connect()
        if store is None:
            return True
        own = f"{distributed.get_rank()} {status}"
        first = store.compare_set(_KEY, "", own).decode()
    except RuntimeError:  # the process that kept the store is gone
        return True
    if distributed.get_rank() == 0:
        time.sleep(2 * PERIOD_SECONDS)  # the store may end with this process: let the others read it first
    return first == own


class Announcements:
    """The announcements of the processes of a run, for one of them to check repeatedly."""

    def __init__(self) -> None:
        self._store: distributed.Store | None = None

    def first(self) -> tuple[int, int] | None:
        """Return the rank that ended the run, and its exit status; ``None`` while the run goes on.

        Raises:
            RuntimeError: If the store is gone with the process that kept it.
        """
        if self._store is None:
            self._store = _connect()
        if self._store is None or not self._store.check([_KEY]):
            return None
        rank, status = self._store.get(_KEY).decode().split()
        return int(rank), int(status)


def _connect() -> distributed.Store | None:
    """Return the store; ``None`` if this process belongs to no process group.

    Raises:
        RuntimeError: If the process that kept it is gone.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(host, port, is_master=False, timeout=_TIMEOUT)
    # torchrun restarts processes with the same store: each start has its own keys.
    return distributed.PrefixStore(f"lit_gfs/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
