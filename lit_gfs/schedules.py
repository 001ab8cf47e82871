"""Schedules: pure functions of the environment-step count, so that a resumed run goes on where it was."""

from __future__ import annotations


def linear_schedule(step: int, start: float, end: float, duration: int) -> float:
    """Go from ``start`` to ``end`` in a straight line, then stay.

    Args:
        step: Environment steps so far.
        start: Value at step 0.
        end: Value from ``duration`` on.
        duration: Length of the line in environment steps; 0 gives ``end`` at once.

    Returns:
        The value at ``step``.
    """
    if step >= duration:
        return end
    return start + (end - start) * step / duration
