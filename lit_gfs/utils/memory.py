"""Memory of this machine, and the handling of freed memory."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from lit_gfs.errors import UserError

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_HEAP_BLOCK = 32 * 2**20  # the most that glibc allows on 64 bits
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next request; do nothing with another C library.

    By default glibc returns large blocks to the system and gets them back page by page. With a convolutional
    network, this happens to the activations of every update. ``MALLOC_...`` variables of the user take
    precedence.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def release_freed_memory() -> None:
    """Make glibc return all free memory to the system, even between blocks in use."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    """Return a function of glibc, unless the user sets ``MALLOC_...`` variables."""
    if any(variable.startswith("MALLOC_") for variable in os.environ):
        return None
    return getattr(ctypes.CDLL(None), name, None)


def machine_memory() -> int | None:
    """Return the bytes of memory that all processes together may use; ``None`` if unknown."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        return min(total, int(_CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):
        return total


def require_memory(what: str, size: int) -> None:
    """Refuse an object that does not fit into memory, before making it hangs the machine.

    Args:
        what: Description of the object, with the values that determine its size.
        size: Its minimum size in bytes.

    Raises:
        UserError: If the machine has less memory.
    """
    memory = machine_memory()
    if memory is not None and size > memory:
        raise UserError(
            f"{what} would take {_in_gigabytes(size)} of memory; this machine has {_in_gigabytes(memory)}"
        )


def _in_gigabytes(size: int) -> str:
    return f"{size / 2**30:,.0f} GB"
