"""How processes end: signals in exit statuses, and their names."""

from __future__ import annotations

import signal


def signal_of(status: int) -> int | None:
    """Return the signal that ended a process, ``None`` if none did.

    Args:
        status: Its exit status; a process that reports on another one, as a shell, adds 128 to the signal.
    """
    if status < 0:
        return -status
    return status - 128 if status - 128 in set(signal.Signals) else None


def name_of(number: int) -> str:
    """Name a signal; the usual reason of SIGKILL is added."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (out of memory?)" if name == "SIGKILL" else name
