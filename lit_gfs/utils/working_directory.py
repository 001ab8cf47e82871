"""Where a command was typed: what its paths are relative to, wherever environments take the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_kept: Path | None = None


@contextmanager
def keeping_working_directory() -> Iterator[None]:
    """Have `working_directory` stay what it is now. An environment may change that of the process."""
    global _kept
    before, _kept = _kept, working_directory()
    try:
        yield
    finally:
        _kept = before


def working_directory() -> Path:
    """Return the directory that relative paths are meant from."""
    return _kept or Path.cwd()


def absolute_path(path: str | os.PathLike[str]) -> str:
    """Return a path that means the same wherever the process goes."""
    return os.path.normpath(working_directory() / path)
