"""What a diagnosis consists of: symptoms that rules look for, and findings of a symptom in a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lit_gfs.metrics.series import Series, last_stretch

PAGE = "docs/collapse.md"
"""The page about all symptoms."""

EVALUATION = "eval/episode_return"
"""The score of an agent. Several rules look at it."""

Scalars = Mapping[str, Series]
"""The series of a run by tag."""


class Finding(NamedTuple):
    """A symptom that a run has.

    Attributes:
        name: What is wrong, in a few words.
        text: The numbers behind it.
        since: Step of the first point at which it holds.
        until: Step of the first point at which it no longer holds; ``None`` if it holds until the end.
        advice: What to try.
        section: Section of `PAGE` that explains it.
    """

    name: str
    text: str
    since: int
    until: int | None
    advice: str
    section: str

    @property
    def lasts(self) -> bool:
        """Whether it holds until the end."""
        return self.until is None

    @property
    def steps(self) -> str:
        """Its steps in words."""
        return f"since step {self.since:,}" + ("" if self.until is None else f" until {self.until:,}")

    def __str__(self) -> str:
        return f"{self.name} {self.steps}: {self.text}"

    @property
    def line(self) -> str:
        """All of it in one line."""
        return f"{self}; see {PAGE}, {self.section}; try {self.advice}"


class Symptom(NamedTuple):
    """What a rule looks for, and when it is sure.

    Attributes:
        name: Its name in findings.
        points: Number of neighbouring points that are looked at together. Fewer points are never judged.
        share: Share of these points at which the condition must hold.
        advice: What to try, as options of ``fit`` where there are such.
        section: Section of `PAGE` that explains it.
    """

    name: str
    points: int
    share: float
    advice: str
    section: str

    def series(self, scalars: Scalars, tag: str) -> Series | None:
        """Return a series, if there is one that is long enough."""
        series = scalars.get(tag)
        return series if series is not None and len(series.steps) >= self.points else None

    def find(
        self, steps: Sequence[int], holds: Sequence[bool], text: Callable[[list[int]], str]
    ) -> list[Finding]:
        """Return a finding for the last stretch in which a condition holds, or none.

        Args:
            steps: Step of each point.
            holds: Whether the condition holds at each point.
            text: Writes the numbers, given the indices of the stretch's points at which it holds.
        """
        stretch = last_stretch(holds, self.points, self.share)
        if stretch is None:
            return []
        inside = [index for index in range(stretch.first, stretch.end or len(holds)) if holds[index]]
        until = None if stretch.end is None else steps[stretch.end]
        return [Finding(self.name, text(inside), steps[stretch.first], until, self.advice, self.section)]
