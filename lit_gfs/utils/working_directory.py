"""The directory where a command was typed: its paths are relative to it, even if an environment leaves it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_kept: Path | None = None


@contextmanager
def keeping_working_directory() -> Iterator[None]:
    """Keep the current `working_directory`, even if an environment changes that of the process."""
    global _kept
    before, _kept = _kept, working_directory()
    try:
        yield
    finally:
        _kept = before


def working_directory() -> Path:
    """Return the directory that relative paths start from."""
    return _kept or Path.cwd()


def absolute_path(path: str | os.PathLike[str]) -> str:
    """Return an absolute path, relative to `working_directory`."""
    return os.path.normpath(working_directory() / path)
