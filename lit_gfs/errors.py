"""Errors that a user causes and can mend, and faults that end a run."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from typing import ClassVar

LONGEST_SHOWN = 200
"""Characters of a user's value that are shown."""


class UserError(Exception):
    """A request that cannot be served as it stands.

    The message is one line: the value given, what was expected, and the nearest valid choice where there
    is one. The command line prints it without a traceback and exits with status 2.
    """


class RunFault(Exception):
    """What ends a run in mid-course and is no mistake in what was asked for.

    The command line prints its message in one line, without a traceback, and exits with `status`.
    """

    status: ClassVar[int] = 1


class EnvironmentFault(RunFault):
    """A simulator that raised an exception (its ``__cause__``), or did not come back.

    Args:
        env_id: The environment's id.
        index: Which of the environments stepped together, ``None`` if that is not known.
        what: What it did, such as ``raised ValueError: no such body``.
    """

    status = 4

    def __init__(self, env_id: str, index: int | None, what: str) -> None:
        super().__init__(env_id, index, what)
        self.env_id = env_id
        self.index = index
        self.what = what
        self.env_steps: int | None = None
        """Environment steps that the run had counted by then."""
        self.advice = ""
        """Where to look, and how to go on."""

    def __str__(self) -> str:
        which = self.env_id if self.index is None else f"environment {self.index} of {self.env_id}"
        after = "" if self.env_steps is None else f", after {self.env_steps:,} environment steps"
        return f"{which} {self.what}{after}{self.advice}"


class StorageFault(RunFault):
    """A file of the run that could not be written or read: the disk is full, became read-only, or fails.

    Args:
        what: What could not be done, and why.
        advice: How to go on.
    """

    status = 5

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what + advice)
        self.what = what


class TrainingDiverged(RunFault):
    """A run that was given up: its losses, gradients or weights had stopped being finite.

    Args:
        message: Since when, where it began, and what to try.
        weights_are_lost: Whether the weights themselves are not finite, so that they are not worth keeping.
    """

    status = 3

    def __init__(self, message: str, weights_are_lost: bool = False) -> None:
        super().__init__(message)
        self.weights_are_lost = weights_are_lost


class RunStopped(SystemExit):
    """Ends the process of a run that was asked to stop, with the status that a shell gives to the signal.

    Args:
        number: The signal.
        advice: How the run ended and how to go on, for the line that is printed.
    """

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__(128 + number)
        self.number = number
        self.advice = advice

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}{self.advice}"


class OtherProcessFailed(BaseException):
    """Ends a process because another process of its run has failed, and was to tell why.

    Args:
        status: The exit status of that one, and so of this one.
        message: What is left for this one to print, after the program's name.
    """

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


STOPS = (KeyboardInterrupt, RunStopped, OtherProcessFailed)
"""What a signal, or another process's end, raises in whatever code is running: that code is not at fault."""


def in_one_line(error: BaseException) -> str:
    """Return the kind of an error and what it says."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def nearest(value: str, choices: Iterable[str]) -> str:
    """Name the valid choices, three at most, closest to a misspelt one.

    Args:
        value: What the user wrote.
        choices: Every valid choice.

    Returns:
        ``"; did you mean 'a' or 'b'?"``, ready to end a sentence with, or ``""`` if nothing is close.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(value.lower(), by_lower, n=3, cutoff=0.5)
    if not close:
        return ""
    return f"; did you mean {' or '.join(repr(by_lower[name]) for name in close)}?"


def require_between(least: float, most: float, **values: float | None) -> None:
    """Check numbers that a user gave; ``None`` stands for an option that is off.

    Raises:
        UserError: If one of them lies outside of ``[least, most]``.
    """
    for name, value in values.items():
        if value is not None and not least <= value <= most:
            expected = f"at least {least:g}" if most == float("inf") else f"between {least:g} and {most:g}"
            raise UserError(f"{name} is {value}; expected a number {expected}")
