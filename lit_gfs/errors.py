"""Errors that a user can fix, and faults that end a run."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from typing import ClassVar

_LEAST_ALIKE, _ABOUT_AS_ALIKE = 0.5, 0.1
"""Shares of equal characters, as `difflib` counts them."""
LONGEST_SHOWN = 200
"""How many characters of a user's value an error message shows at most."""


def shown(value: object) -> str:
    """Return a user's value as messages show it: ``null`` for ``None``, shortened if it is long."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


class UserError(Exception):
    """An invalid request by the user.

    The message is one line: the given value, the expected values, and the nearest valid choice if there is
    one. The command line prints it without a traceback and exits with status 2.
    """


class RunFault(Exception):
    """A fault that ends a run although the user's request was valid.

    The command line prints the message in one line, without a traceback, and exits with `status`.
    """

    status: ClassVar[int] = 1


class EnvironmentFault(RunFault):
    """A simulator raised an exception (the fault's ``__cause__``) or did not return in time.

    Args:
        env_id: The environment's id.
        index: Index of the environment in its batch, ``None`` if it is unknown.
        what: A description of the failure, such as ``raised ValueError: no such body``.
    """

    status = 4

    def __init__(self, env_id: str, index: int | None, what: str) -> None:
        super().__init__(env_id, index, what)
        self.env_id = env_id
        self.index = index
        self.what = what
        self.env_steps: int | None = None
        """Environment steps of the run before the failure."""
        self.advice = ""
        """Advice for the user: where to look, and how to continue."""

    def __str__(self) -> str:
        which = self.env_id if self.index is None else f"environment {self.index} of {self.env_id}"
        after = "" if self.env_steps is None else f", after {self.env_steps:,} environment steps"
        return f"{which} {self.what}{after}{self.advice}"


class StorageFault(RunFault):
    """Writing or reading a file of the run failed: the disk is full, read-only or broken.

    Args:
        what: The failed operation and its reason.
        advice: How to continue.
    """

    status = 5

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what + advice)
        self.what = what


class TrainingDiverged(RunFault):
    """Training ended because losses, gradients or weights were no longer finite.

    Args:
        message: When and where it began, and what to try.
        weights_are_lost: Whether the weights are not finite either, so saving them is useless.
    """

    status = 3

    def __init__(self, message: str, weights_are_lost: bool = False) -> None:
        super().__init__(message)
        self.weights_are_lost = weights_are_lost


class RunStopped(SystemExit):
    """Exit of a run after a signal, with the shell's exit status for that signal.

    Args:
        number: Number of the signal.
        advice: How the run ended and how to continue; a part of the printed line.
    """

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__(128 + number)
        self.number = number
        self.advice = advice

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}{self.advice}"


class OtherProcessFailed(BaseException):
    """Exit of a process because another process of its run failed; that process reports the reason.

    Args:
        status: Exit status of the failed process, and of this one.
        message: Text that this process still prints, after the program's name.
    """

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


STOPS = (KeyboardInterrupt, RunStopped, OtherProcessFailed)
"""Exceptions that a signal or the end of another process raises. The code they interrupt is not at fault."""


def in_one_line(error: BaseException) -> str:
    """Return the class and the message of an error in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def nearest(value: str, choices: Iterable[str]) -> str:
    """Suggest up to three valid choices for a misspelt one.

    Args:
        value: The user's value.
        choices: All valid choices.

    Returns:
        ``"; did you mean 'a' or 'b'?"``, as the end of a sentence, or ``""`` if no choice is close.
    """
    return did_you_mean(closest(value, choices))


def closest(value: str, choices: Iterable[str]) -> list[str]:
    """Return up to three choices that resemble a value: the closest first, then those about as close."""
    by_lower = {choice.lower(): choice for choice in choices}
    alike = {name: difflib.SequenceMatcher(None, name, value.lower()).ratio() for name in by_lower}
    least = max(_LEAST_ALIKE, max(alike.values(), default=0.0) - _ABOUT_AS_ALIKE)
    names = [name for name in sorted(alike, key=lambda name: -alike[name]) if alike[name] >= least]
    return [by_lower[name] for name in names[:3]]


def did_you_mean(choices: Iterable[str]) -> str:
    """Return the end of a sentence that suggests choices, or ``""`` if there are none."""
    suggested = " or ".join(repr(choice) for choice in choices)
    return f"; did you mean {suggested}?" if suggested else ""


def require_positive(**values: int | None) -> None:
    """Check the user's counts by their names; ``None`` means that an option is off.

    Raises:
        UserError: If one of them is less than 1.
    """
    require_at_least(1, **values)


def require_at_least(least: int, /, **values: int | None) -> None:
    """Check the user's whole numbers by their names; ``None`` means that an option is off.

    Raises:
        UserError: If one of them is smaller.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; expected a whole number of at least {least}")


def require_above(limit: float, /, **values: float | None) -> None:
    """Check the user's numbers by their names; ``None`` means that an option is off.

    Raises:
        UserError: If a number is not above the limit, or not finite.
    """
    for name, value in values.items():
        if value is not None and not limit < value < float("inf"):
            raise UserError(f"{name} is {value}; expected a number above {limit:g}")


def require_one_of(choices: Iterable[str], /, **values: str) -> None:
    """Check the user's words by their names.

    Raises:
        UserError: If a word is none of the choices.
    """
    known = tuple(choices)
    for name, value in values.items():
        if value not in known:
            expected = ", ".join(map(repr, known))
            raise UserError(f"{name} is {value!r}; expected one of {expected}{nearest(str(value), known)}")


def require_between(least: float, most: float, **values: float | None) -> None:
    """Check the user's numbers by their names; ``None`` means that an option is off.

    Raises:
        UserError: If a number lies outside of ``[least, most]``.
    """
    for name, value in values.items():
        if value is not None and not least <= value <= most:
            expected = f"at least {least:g}" if most == float("inf") else f"between {least:g} and {most:g}"
            raise UserError(f"{name} is {value}; expected a number {expected}")


def require_unused(why: str, /, **values: object) -> None:
    """Check that the user left options alone that would have no effect.

    Args:
        why: The rest of the line, such as ``"it has no effect with reference 'unit'"``.
        **values: Options by their names.

    Raises:
        UserError: If a value is neither ``None`` nor 0.
    """
    for name, value in values.items():
        if value:
            raise UserError(f"{name} is {value}, but {why}")
