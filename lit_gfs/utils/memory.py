"""How much memory this machine has, and what becomes of memory that is freed."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_gfs.errors import UserError

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_HEAP_BLOCK = 32 * 2**20  # the most that glibc allows on 64 bits
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next request, where it is glibc's.

    By default glibc hands large blocks back to the system, and gets them again page by page: the activations
    of every single update of a convolutional network. Whoever sets ``MALLOC_...`` variables decides by them.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def release_freed_memory() -> None:
    """Have the C library hand back what is free now, also between blocks in use."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    """Return a function of glibc, unless the user decides about memory."""
    if any(variable.startswith("MALLOC_") for variable in os.environ):
        return None
    return getattr(ctypes.CDLL(None), name, None)


class ReleaseFreedMemory(Callback):
    """Hands freed memory back after each evaluation.

    An evaluation and a checkpoint leave small blocks behind between large free ones, which then no longer
    hold what they held: with `keep_freed_memory` alone, a long run takes more and more.
    """

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        release_freed_memory()


def machine_memory() -> int | None:
    """Return the bytes of memory that processes here may use together; ``None`` where it cannot be told."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        return min(total, int(_CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):
        return total


def require_memory(what: str, size: int) -> None:
    """Refuse what cannot fit, before the attempt to make it hangs the machine.

    Args:
        what: What it is for, with the values that decide its size.
        size: Bytes that it takes at least.

    Raises:
        UserError: If the machine has less.
    """
    memory = machine_memory()
    if memory is not None and size > memory:
        raise UserError(
            f"{what} would take {_in_gigabytes(size)} of memory; this machine has {_in_gigabytes(memory)}"
        )


def _in_gigabytes(size: int) -> str:
    return f"{size / 2**30:,.0f} GB"
