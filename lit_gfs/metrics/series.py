"""Logged scalars as series, within bounds, and the stretches of a series in which a condition holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

MOST_POINTS = 256
"""Largest number of points of a series; the state in a checkpoint stays small."""


class Series(NamedTuple):
    """A logged scalar: steps, which do not decrease, and values; two sequences of the same length."""

    steps: Sequence[int]
    values: Sequence[float]


class SeriesRecord:
    """Keeps the points of scalars by tag, at equal distances of at most `most` points a tag.

    When a series is full, every other point is dropped, and from then on only every other new point is kept.
    So two records of the same points are equal, no matter when they are read.

    Args:
        most: Largest number of points of a series; an even number.
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        self.most = most
        self._points: dict[str, list[tuple[int, float]]] = {}
        self._seen: dict[str, int] = {}

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add a point to each of these scalars."""
        for tag, value in scalars.items():
            points, seen = self._points.setdefault(tag, []), self._seen.get(tag, 0)
            self._seen[tag] = seen + 1
            # Each time that the number of points doubles, so does the distance of those that are kept.
            if seen % (1 << (seen // self.most).bit_length()):
                continue
            if len(points) == self.most:
                del points[1::2]
            points.append((step, float(value)))

    def series(self) -> dict[str, Series]:
        """Return all series by tag."""
        return {
            tag: Series([step for step, _ in points], [value for _, value in points])
            for tag, points in self._points.items()
        }

    def state_dict(self) -> dict[str, dict[str, tuple[list[int], list[float], int]]]:
        """Return plain lists, for a checkpoint."""
        return {
            "series": {
                tag: (list(series.steps), list(series.values), self._seen[tag])
                for tag, series in self.series().items()
            }
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, tuple[list[int], list[float], int]]]) -> None:
        """Take the points of a checkpoint back."""
        saved = state["series"]
        self._points = {
            tag: list(zip(steps, values, strict=True)) for tag, (steps, values, _) in saved.items()
        }
        self._seen = {tag: seen for tag, (_, _, seen) in saved.items()}


def bounded(points: Iterable[tuple[int, float]], most: int = MOST_POINTS) -> Series:
    """Return the series that a `SeriesRecord` keeps of these points."""
    record = SeriesRecord(most)
    for step, value in points:
        record.add(step, {"": value})
    return record.series().get("", Series([], []))


class Stretch(NamedTuple):
    """The points of a series in which a condition holds: the first, and the first after it, if any."""

    first: int
    end: int | None


def last_stretch(holds: Sequence[bool], window: int, share: float = 1.0) -> Stretch | None:
    """Find the last stretch in which a condition holds at nearly every point.

    Args:
        holds: Whether it holds at each point.
        window: Number of neighbouring points that are looked at together; a stretch has at least as many.
        share: Share of a window's points at which it must hold.

    Returns:
        The first point at which it holds, and the point after the stretch; ``None`` as the latter if the
        stretch lasts until the last point. ``None`` if there is no stretch, as in a series that is too short.
    """
    needed = math.ceil(share * window)
    fires = [sum(holds[end - window : end]) >= needed for end in range(window, len(holds) + 1)]
    if not any(fires):
        return None
    last = len(fires) - 1 - fires[::-1].index(True)
    start = last
    while start > 0 and fires[start - 1]:
        start -= 1
    first = next(point for point in range(start, start + window) if holds[point])
    end = last + window
    return Stretch(first, None if end == len(holds) else end)
