"""Errors that a user causes and can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A request that cannot be served as it stands.

    The message is one line: the value given, what was expected, and the nearest valid choice where there
    is one. The command line prints it without a traceback and exits with status 2.
    """


def nearest(value: str, choices: Iterable[str], count: int = 3) -> str:
    """Name the valid choices closest to a misspelt one.

    Args:
        value: What the user wrote.
        choices: Every valid choice.
        count: The most choices to name.

    Returns:
        ``"; did you mean 'a' or 'b'?"``, ready to end a sentence with, or ``""`` if nothing is close.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(value.lower(), by_lower, n=count, cutoff=0.5)
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
