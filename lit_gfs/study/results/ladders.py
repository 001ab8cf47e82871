"""Ladders of sizes: scales that differ in one measure, and the largest network without loss on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lit_gfs.study.planning.plan import Compare, Study

MEASURES = ("depth", "width")
FEWEST_SCALES = 3
MARGIN = 0.95
"""Without loss by the interval: the lower end of the ratio to the small baseline reaches this."""


class Ladder(NamedTuple):
    """Scales in the order of the study, and their sizes.

    Attributes:
        along: The measure in which they differ: ``depth``, ``width``, or ``scale`` if it is none of the two.
        at: The measure that they share, as in ``width 96``; empty for ``scale``.
        scales: Their names.
        sizes: Their sizes along the measure; empty for ``scale``.
    """

    along: str
    at: str
    scales: list[str]
    sizes: list[int]


def find_ladders(study: Study, scales: Sequence[str]) -> list[Ladder]:
    """Find the ladders of at least three scales.

    A scale's depth and width are its options ``model.trunk.depth`` and ``model.trunk.width``. If no three
    scales share one and differ in the other, all scales are one ladder.

    Args:
        study: The plan.
        scales: The scales that took part, in order.
    """
    found = []
    for along, shared in (MEASURES, MEASURES[::-1]):
        groups: dict[int | None, dict[int, str]] = {}
        for scale in scales:
            size = _size(study, scale, along)
            if size is not None:
                groups.setdefault(_size(study, scale, shared), {}).setdefault(size, scale)
        found += [
            Ladder(along, "" if value is None else f"{shared} {value}", list(group.values()), list(group))
            for value, group in groups.items()
            if len(group) >= FEWEST_SCALES
        ]
    return found or ([Ladder("scale", "", list(scales), [])] if len(scales) >= FEWEST_SCALES else [])


def largest_without_loss(
    plan: Compare, ladder: Ladder, rows: Sequence[dict[str, Any]]
) -> list[dict[str, str | None]]:
    """Find the last scale of a ladder at which a recipe loses nothing, for every recipe and stratum.

    Args:
        plan: Names the baseline recipe and scale.
        ladder: The ladder.
        rows: Headlines of single strata.

    Returns:
        ``stratum``, ``recipe``, and two scales, ``None`` if there is none: ``by_estimate``, the last one with
        a ratio to the small baseline of at least 1, and ``by_interval``, the last one with a lower end of its
        interval of at least `MARGIN`. The small baseline itself has lost nothing.
    """
    largest: dict[tuple[str, str], dict[str, str | None]] = {}
    # In the order of the ladder, so that a later scale replaces an earlier one.
    for row in sorted(
        (row for row in rows if row["scale"] in ladder.scales),
        key=lambda row: ladder.scales.index(row["scale"]),
    ):
        stratum, recipe, ratio = row["stratum"], row["recipe"], row["ratio"]
        entry = largest.setdefault(
            (stratum, recipe),
            {"stratum": stratum, "recipe": recipe, "by_estimate": None, "by_interval": None},
        )
        is_itself = (row["scale"], recipe) == (plan.base_scale, plan.baseline)
        if is_itself or (ratio["value"] is not None and ratio["value"] >= 1):
            entry["by_estimate"] = row["scale"]
        if is_itself or (ratio["interval"] is not None and ratio["interval"][0] >= MARGIN):
            entry["by_interval"] = row["scale"]
    return list(largest.values())


def _size(study: Study, scale: str, measure: str) -> int | None:
    options = study.factors["scale"][scale].options
    for name in (f"model.trunk.{measure}", f"model.trunk.init_args.{measure}"):
        if type(options.get(name)) is int:
            return int(options[name])
    return None
