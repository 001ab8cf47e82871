"""What becomes of memory that is freed."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_HEAP_BLOCK = 32 * 2**20  # the most that glibc allows on 64 bits
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next request, where it is glibc's.

    By default glibc hands large blocks back to the system, and gets them again page by page: the activations
    of every single update of a convolutional network. Resident memory then stays at its peak. Whoever sets
    ``MALLOC_...`` variables decides by them.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
