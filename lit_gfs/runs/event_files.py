"""TensorBoard's event files in a run that is stopped and resumed: no gap, and no point twice."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

SUPERSEDED = "superseded"
_PATTERN = "events.out.tfevents.*"


def event_file_sizes(directory: Path) -> dict[str, int]:
    """Return the sizes of a run's event files in bytes, by name."""
    return {path.name: path.stat().st_size for path in directory.glob(_PATTERN)}


def cut_event_files(directory: Path, sizes: Mapping[str, int], present: Iterable[str]) -> None:
    """Take a run's event files back to what they were; what was written since goes to ``superseded/``.

    Purging by step, as TensorBoard itself does, would not do: several points may stand at one step, some of
    them written before a checkpoint and some after it. What was set aside comes back where a run goes on with
    a checkpoint that needs it. In the directory of another run nothing is done.

    Args:
        directory: Where the files are.
        sizes: What `event_file_sizes` returned then.
        present: The files that are there now, but for those that a writer has just opened.
    """
    aside = directory / SUPERSEDED

    def versions(name: str) -> tuple[Path, Path]:
        # TensorBoard takes any file with its word in the name for a run's.
        return directory / name, aside / name.replace("tfevents", "superseded")

    # What a checkpoint names is believed as far as it names files of this kind in this directory.
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
            # A file is only ever appended to: of two versions the longer one holds both.
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
    """Wait, for a second at most, until a new event file's name sorts behind those that are there.

    Readers take files in the order of their names, which begin with the second that they were made in.
    """
    seconds = (path.name.split(".")[3] for path in directory.glob(_PATTERN))
    latest = max((int(second) for second in seconds if second.isdecimal()), default=0)
    now = time.time()
    if latest <= now < latest + 1:
        time.sleep(latest + 1 - now)
