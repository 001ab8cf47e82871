"""Ray, imported where it is needed, and connected to without a trace in this process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_gfs.errors import UserError
from lit_gfs.utils.stop_signals import STOP_SIGNALS

SETTINGS = {
    # Reports of how Ray is used would leave the machine.
    "RAY_USAGE_STATS_ENABLED": "0",
    # How tasks without a GPU see the GPUs will change; this is how it will be.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's workers would be the last to compute on a machine with others; for Ray that this process starts.
    "RAY_worker_niceness": "0",
}
"""Environment variables that are set unless the user has set them; Ray reads them when it is imported."""


def import_ray(option: str) -> Any:
    """Import Ray.

    Args:
        option: The option that needs it, as the user wrote it.

    Raises:
        UserError: If it is not installed.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UserError(
            f"{option} needs the package ray ({error}); run: pip install 'lit-gfs[ray]'"
        ) from error
    return ray


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Keep `ray.init` from handling SIGTERM in the place of this program."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)
