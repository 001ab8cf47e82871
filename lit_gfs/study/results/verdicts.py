"""What figures say: aims that are met or not, tasks that are won, tied or lost."""

from __future__ import annotations

from collections.abc import Iterable

from lit_gfs.metrics.intervals import Floats, estimate, interquartile_means
from lit_gfs.study.results.estimates import Figure

AIMS = {"ratio": 1.0, "ratio_at_scale": 0.95, "stability_gain": 0.62, "speed_up": 1.8}
"""Aims of the method; for the ratio to the small baseline, the lower end of the interval has to reach it."""

OUTCOMES = ("wins", "ties", "losses")


def verdict(name: str, result: Figure) -> str:
    """Say whether a figure meets its aim.

    Args:
        name: A key of `AIMS`.
        result: The figure.

    Returns:
        ``met``, ``met by the estimate alone`` (the interval reaches below the aim), ``not met`` or
        ``undefined``.
    """
    value, interval, aim = result["value"], result["interval"], AIMS[name]
    if value is None:
        return "undefined"
    if value < aim:
        return "not met"
    if interval is not None and interval[0] >= aim:
        return "met"
    if name != "ratio":
        return "met by the estimate alone"
    # "Without loss" is about the interval's lower end.
    return "undefined" if interval is None else "not met"


def outcomes(tasks: Iterable[tuple[str, Floats | None, Floats | None]]) -> dict[str, list[str]]:
    """Sort tasks by whether a recipe beats its baseline on them.

    Args:
        tasks: Name of each task, with the final scores of the recipe and of its baseline and their resamples,
            ``(1 + resamples, runs)``; ``None`` if they are not known.

    Returns:
        Names of tasks by outcome: ``wins`` if the interval of the difference between the two interquartile
        means is above 0, ``losses`` if it is below 0, else ``ties``. A task with a single run on one of the
        sides has no interval, and is in none of the lists.
    """
    sorted_tasks: dict[str, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for name, ours, own in tasks:
        if ours is None or own is None or min(ours.shape[-1], own.shape[-1]) < 2:
            continue
        _, low, high = estimate(interquartile_means([ours]) - interquartile_means([own]))
        outcome = "wins" if low > 0 else "losses" if high < 0 else "ties"
        sorted_tasks[outcome].append(name)
    return sorted_tasks
