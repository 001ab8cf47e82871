"""Where runs lie on the disk: names of files and directories, and the search for a run, without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

from lit_gfs.errors import UserError

LAST = "last"
"""Stands for the newest intact checkpoint of the latest run."""
CONFIG_NAME = "config.yaml"
"""File name of the resolved configuration in a run directory."""
CONFIG_HEADER = "# The resolved configuration of a run, written by lit_gfs.\n"
"""Its first line."""
DEFAULT_ROOT = "runs"
"""Default directory of all runs."""
LAST_NAME = "last.ckpt"
PREVIOUS_NAME = "previous.ckpt"
"""The ``last.ckpt`` before the current one."""


def require_directory(option: str, name: str) -> None:
    """Check that a name from the user can be a directory.

    Raises:
        UserError: If it is empty, or an address such as ``s3://bucket``, which is not supported.
    """
    if not name or "\x00" in name:
        raise UserError(f"{option} is {name!r}; expected a directory")
    if "://" in name:
        raise UserError(f"{option} is {name!r}; expected a directory of this machine, as in: {option} runs")


def directory_of(name: str, option: str = "--ckpt_path") -> Path:
    """Return a checkpoint's directory, or the directory itself.

    Args:
        name: A checkpoint or a directory.
        option: The option that gave the name, for messages.

    Raises:
        UserError: If the name is neither a file nor a directory; the message names checkpoints in that place.
    """
    path = Path(name)
    if os.path.isdir(name):
        return path
    if os.path.isfile(name):
        return path.parent
    neighbours = [str(other) for other in sorted(path.parent.glob("*.ckpt"))]
    found = f"; there are {', '.join(map(repr, neighbours))}" if neighbours else ""
    raise UserError(f"{option} {name!r} not found; expected a checkpoint file{found}")


def find_run(directory: Path) -> Path | None:
    """Return the run directory for a directory of checkpoints: the same, or one up."""
    directory = directory.absolute()
    return next((run for run in (directory, directory.parent) if _is_run(run)), None)


def _is_run(directory: Path) -> bool:
    """Return whether a directory belongs to a run, rather than to a user's own configuration."""
    try:
        with (directory / CONFIG_NAME).open(encoding="utf-8") as stream:
            return stream.readline() == CONFIG_HEADER
    except (OSError, UnicodeError):
        return False


def latest_run(root: str | None = None, name: str | None = None, version: str | None = None) -> Path:
    """Return the directory of the run that started last.

    Args:
        root: Directory of all runs; ``None`` stands for ``runs``.
        name: Directory of a group of runs; ``None`` stands for the one with the latest run.
        version: Directory of the run; ``None`` stands for the highest ``version_<n>``.

    Raises:
        UserError: If there is no such run.
    """
    root = root or DEFAULT_ROOT
    groups = [Path(root, name)] if name else sorted(path for path in Path(root).glob("*") if path.is_dir())
    runs = [run for group in groups if (run := _latest_version(group, version))]
    if not runs:
        place = Path(root, name or "*", version or "version_*")
        raise UserError(f"--ckpt_path {LAST}: no run in {place}; expected one that fit has begun")
    return max(runs, key=lambda run: (run / CONFIG_NAME).stat().st_mtime_ns)


def _latest_version(group: Path, version: str | None) -> Path | None:
    if version:
        runs = [group / version]
    else:
        numbered = (run for run in group.glob("version_*") if _number(run).isdecimal())
        runs = sorted(numbered, key=lambda run: int(_number(run)))
    return next((run for run in reversed(runs) if (run / CONFIG_NAME).is_file()), None)


def _number(run: Path) -> str:
    return run.name.removeprefix("version_")
