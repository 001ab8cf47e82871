"""Attempts at a cell: a killed one resumes from its last checkpoint, and keeps its clock."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lit_gfs.runs.event_files import SUPERSEDED
from lit_gfs.runs.layout import PREVIOUS_NAME
from lit_gfs.study.cell.task import TASK_NAME
from lit_gfs.study.lease import LEASE_NAME
from lit_gfs.study.results.collect import RESULT_NAME
from lit_gfs.utils.atomic_files import replacing_text

ATTEMPTS_NAME = "attempts.json"


class Attempt(NamedTuple):
    """One attempt at a cell.

    Attributes:
        started_at: Its start, in seconds since the epoch.
        before: Seconds of earlier attempts, up to the checkpoint that it resumes from.
    """

    started_at: float
    before: float


def seconds_in(attempts: Sequence[Attempt], moment: float) -> float:
    """Return the seconds that a cell had run at a moment, without pauses and lost work.

    Args:
        attempts: The cell's attempts, in order.
        moment: The moment, in seconds since the epoch.
    """
    begun = [attempt for attempt in attempts if attempt.started_at <= moment]
    attempt = begun[-1] if begun else attempts[0]
    return round(attempt.before + moment - attempt.started_at, 3)


def prepare(directory: Path, command: Sequence[str]) -> None:
    """Make a cell's directory; keep only an unfinished attempt with the same arguments in it.

    Files of the process that is at work stay: its task and its lease.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if not _read(directory, command):
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (TASK_NAME, LEASE_NAME):
                path.unlink()
    (directory / RESULT_NAME).unlink(missing_ok=True)


def begin_attempt(directory: Path, command: Sequence[str]) -> tuple[list[Attempt], list[str]]:
    """Start a cell, or resume it.

    Args:
        directory: The cell's directory, as `prepare` left it.
        command: All arguments of its ``fit``.

    Returns:
        All attempts including this one, and the arguments to add to the command.
    """
    # Imported late: it needs PyTorch, which planning a study does not.
    from lit_gfs.runs.checkpoints import newest_intact

    attempts = _read(directory, command)
    checkpoint = newest_intact(directory)[0] if attempts else None
    if checkpoint is None:
        forget_attempts(directory)
        prepare(directory, command)
        attempts, options, before = [], [], 0.0
    else:
        options = [f"--ckpt_path={checkpoint}"]
        before = seconds_in(attempts, checkpoint.stat().st_mtime)
    attempts.append(Attempt(time.time(), before))
    with replacing_text(directory / ATTEMPTS_NAME) as file:
        json.dump({"command": list(command), "attempts": attempts}, file)
    return attempts, options


def forget_attempts(directory: Path) -> None:
    """Make the next attempt at a cell start anew."""
    (directory / ATTEMPTS_NAME).unlink(missing_ok=True)


def clear_up(directory: Path, keep_checkpoints: bool) -> None:
    """Remove the files from which an ended cell could resume.

    Its task stays, for a second process that may still wait in the queue of a cluster.

    Args:
        directory: The cell's directory.
        keep_checkpoints: Whether to keep the best and the last weights.
    """
    forget_attempts(directory)
    for partial in directory.glob(f"{LEASE_NAME}.*"):
        partial.unlink()
    for place in (directory / SUPERSEDED, *directory.glob("replay*")):
        shutil.rmtree(place, ignore_errors=True)
    for checkpoint in directory.glob("*.ckpt"):
        if not keep_checkpoints or checkpoint.name == PREVIOUS_NAME:
            checkpoint.unlink()


def _read(directory: Path, command: Sequence[str]) -> list[Attempt]:
    """Return the attempts at an unfinished cell; an empty list if its arguments have changed."""
    try:
        content = json.loads((directory / ATTEMPTS_NAME).read_text(encoding="utf-8"))
        if content["command"] == list(command):
            return [Attempt(float(started_at), float(before)) for started_at, before in content["attempts"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return []
