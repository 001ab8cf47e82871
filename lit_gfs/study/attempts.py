"""A cell's attempts: one that was killed goes on from its last checkpoint, and its clock with it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lit_gfs.runs.checkpoint_io import PREVIOUS_NAME
from lit_gfs.runs.checkpoints import newest_intact
from lit_gfs.runs.event_files import SUPERSEDED
from lit_gfs.study.collect import RESULT_NAME
from lit_gfs.utils.atomic_files import replacing_text

ATTEMPTS_NAME = "attempts.json"


class Attempt(NamedTuple):
    """One attempt at a cell.

    Attributes:
        started_at: When, in seconds since the epoch.
        before: Seconds of earlier attempts that it builds on: up to the checkpoint that it goes on from.
    """

    started_at: float
    before: float


def seconds_in(attempts: Sequence[Attempt], moment: float) -> float:
    """Return how long a cell had been at work, without the pauses and what was lost.

    Args:
        attempts: Its attempts, in order.
        moment: In seconds since the epoch.
    """
    begun = [attempt for attempt in attempts if attempt.started_at <= moment]
    attempt = begun[-1] if begun else attempts[0]
    return round(attempt.before + moment - attempt.started_at, 3)


def prepare(directory: Path, command: Sequence[str]) -> None:
    """Have a cell's directory, with nothing in it but an unfinished attempt with the same arguments."""
    if not _read(directory, command):
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
    (directory / RESULT_NAME).unlink(missing_ok=True)


def begin_attempt(directory: Path, command: Sequence[str]) -> tuple[list[Attempt], list[str]]:
    """Begin with a cell, or go on with it.

    Args:
        directory: The cell's, as `prepare` left it.
        command: All arguments of its ``fit``.

    Returns:
        All attempts, this one included, and what is added to the command.
    """
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
    """Have the next attempt at a cell begin anew."""
    (directory / ATTEMPTS_NAME).unlink(missing_ok=True)


def clear_up(directory: Path, keep_checkpoints: bool) -> None:
    """Remove what a cell that has ended has no more use for: all that is there to go on with.

    Args:
        directory: The cell's.
        keep_checkpoints: Whether the best and the last weights stay.
    """
    forget_attempts(directory)
    for place in (directory / SUPERSEDED, *directory.glob("replay*")):
        shutil.rmtree(place, ignore_errors=True)
    for checkpoint in directory.glob("*.ckpt"):
        if not keep_checkpoints or checkpoint.name == PREVIOUS_NAME:
            checkpoint.unlink()


def _read(directory: Path, command: Sequence[str]) -> list[Attempt]:
    """Return the attempts at a cell that has not ended; none if they were made with other arguments."""
    try:
        content = json.loads((directory / ATTEMPTS_NAME).read_text(encoding="utf-8"))
        if content["command"] == list(command):
            return [Attempt(float(started_at), float(before)) for started_at, before in content["attempts"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return []
