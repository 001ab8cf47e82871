"""TensorBoard's event files in a stopped and resumed run: no gap, and no duplicate points."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

SUPERSEDED = "superseded"
_PATTERN = "events.out.tfevents.*"


def event_directory(run: Path) -> Path:
    """Return the directory of a run's event files: its own directory, or the one inside that has them."""
    if any(run.glob(_PATTERN)):
        return run
    return next((path.parent for path in sorted(run.glob(f"*/{_PATTERN}"))), run)


def event_file_sizes(directory: Path) -> dict[str, int]:
    """Return the sizes of a run's event files in bytes, by name."""
    return {path.name: path.stat().st_size for path in directory.glob(_PATTERN)}


def cut_event_files(directory: Path, sizes: Mapping[str, int], present: Iterable[str]) -> None:
    """Cut a run's event files to earlier sizes; move later events to ``superseded/``.

    TensorBoard's own purging by step is not enough: several points may have the same step, some written
    before a checkpoint and some after it. Events in ``superseded/`` come back if a run resumes from a
    checkpoint that needs them. In the directory of another run the function does nothing.

    Args:
        directory: Directory of the files.
        sizes: The earlier result of `event_file_sizes`.
        present: The files that are there now, except those that a writer has just opened.
    """
    aside = directory / SUPERSEDED

    def versions(name: str) -> tuple[Path, Path]:
        # TensorBoard reads any file with "tfevents" in its name.
        return directory / name, aside / name.replace("tfevents", "superseded")

    # A checkpoint is not trusted: it may name only event files in this directory.
    if not all(Path(name).name == name and fnmatch(name, _PATTERN) for name in sizes):
        return
    files = [path for name in {*present, *sizes} for path in versions(name)]
    if any(path.is_symlink() for path in (aside, *files)):
        return
    if not sizes or not all(any(map(Path.exists, versions(name))) for name in sizes):
        return
    for name in {*present, *sizes}:
        path, copy = versions(name)
        size = sizes.get(name, 0)
        if _size(path) > max(size, _size(copy)):
            # Files only grow at their end, so the longer of two versions contains the other.
            aside.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
        if _size(path) < size and copy.exists():
            shutil.copyfile(copy, path)
        if name not in sizes:
            path.unlink()
        elif _size(path) > size:
            os.truncate(path, size)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def wait_for_a_later_name(directory: Path) -> None:
    """Wait at most a second, until the name of a new event file sorts after the existing ones.

    Readers sort the files by name, and a name begins with the second in which the file was made.
    """
    seconds = (path.name.split(".")[3] for path in directory.glob(_PATTERN))
    latest = max((int(second) for second in seconds if second.isdecimal()), default=0)
    now = time.time()
    if latest <= now < latest + 1:
        time.sleep(latest + 1 - now)
