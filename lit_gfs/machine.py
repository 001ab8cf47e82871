"""What this machine has room for."""

from __future__ import annotations

import os
from pathlib import Path

from lit_gfs.errors import UserError

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


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
