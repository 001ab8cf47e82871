"""What one process of a run tells the others of its end.

It goes through the key-value store through which they found each other, by a connection of its own: the one
of the process group may be waited on.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

from torch import distributed

PERIOD_SECONDS = 0.2
"""How often the others look."""
_KEY = "ending"
_TIMEOUT = timedelta(seconds=5)


def announce(status: int) -> bool:
    """Tell the other processes of the run that this one ends it.

    Args:
        status: Its exit status, which is to be that of all of them.

    Returns:
        Whether it is the first to do so, so that it is the one to tell the user why.
    """
    try:
        store = _connect()
        if store is None:
            return True
        own = f"{distributed.get_rank()} {status}"
        first = store.compare_set(_KEY, "", own).decode()
    except RuntimeError:  # whoever kept the store is gone
        return True
    if distributed.get_rank() == 0:
        time.sleep(2 * PERIOD_SECONDS)  # the store may go with this process: let the others read it
    return first == own


class Announcements:
    """What the processes of a run have announced, for one of them to look at again and again."""

    def __init__(self) -> None:
        self._store: distributed.Store | None = None

    def first(self) -> tuple[int, int] | None:
        """Return the rank that ended the run, and its exit status; ``None`` before one has.

        Raises:
            RuntimeError: If the store is gone, with the process that kept it.
        """
        if self._store is None:
            self._store = _connect()
        if self._store is None or not self._store.check([_KEY]):
            return None
        rank, status = self._store.get(_KEY).decode().split()
        return int(rank), int(status)


def _connect() -> distributed.Store | None:
    """Return the store, ``None`` where this process has not found any other.

    Raises:
        RuntimeError: If nobody keeps it any more.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(host, port, is_master=False, timeout=_TIMEOUT)
    # torchrun's store outlasts the processes that it starts again.
    return distributed.PrefixStore(f"lit_gfs/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
