"""The signals that ask a process to stop."""

from __future__ import annotations

import signal
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Ctrl-C, the usual request to end, a closed terminal, Ctrl-\\, and SLURM's notice before a time limit."""


def unclaimed_signals() -> dict[int, Any]:
    """Return the stop signals that still have their default handlers, with these handlers.

    Signals that the process ignores (``nohup``) or already handles are left out.
    """
    defaults: dict[int, Any] = dict.fromkeys(STOP_SIGNALS, signal.SIG_DFL)
    defaults[signal.SIGINT] = signal.default_int_handler
    return {number: default for number, default in defaults.items() if signal.getsignal(number) == default}
