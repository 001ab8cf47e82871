"""Groups of runs that differ only in their seed, with their resamples."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lit_gfs.metrics.intervals import Floats, draw
from lit_gfs.study.planning.plan import Study
from lit_gfs.study.results.curves import GroupCurve, group_curve
from lit_gfs.study.results.table import FAILED, FINISHED, MISSING, Run, Table


class Group(NamedTuple):
    """The runs of one recipe at one scale in one stratum, without those that have not run yet.

    Scores are ``(1 + resamples, runs)``; row 0 is the sample itself. A failed run counts as one that learned
    nothing and lost everything.
    """

    runs: list[Run]
    scores: Floats | None
    """Final scores; ``None`` if a run failed in a task with an unknown floor."""
    normalized: Floats | None
    """Normalized final scores; ``None`` in a task without floor and reference."""
    instabilities: Floats | None
    """Instabilities of the runs that learned; ``None`` if none did."""
    by_steps: GroupCurve | None
    by_seconds: GroupCurve | None


class Stratum(NamedTuple):
    """All groups of a combination of levels other than scale, recipe and seed."""

    name: str
    tuned: bool
    """Whether its task took part in choosing the recipes."""
    lowest: float
    """Learning curves: the score of a run that learned nothing."""
    highest: float
    """Learning curves: the score that counts as solved."""
    groups: dict[tuple[str, str], Group]
    """By scale and recipe."""


def failed(run: Run) -> bool:
    """Return whether a run counts as failed; a run that finished without a score does too."""
    return run.status == FAILED or (run.status == FINISHED and not _is_number(run.final_score))


def stratum_names(study: Study, runs: Iterable[Run]) -> list[str]:
    """List the strata in the order of their first run."""
    return list(dict.fromkeys(study.stratum(run.levels) for run in runs))


def read_stratum(study: Study, table: Table, name: str, resamples: int, seed: int) -> Stratum:
    """Collect and resample the groups of a stratum.

    Args:
        study: The plan.
        table: The study's tables.
        name: The stratum.
        resamples: Number of resamples.
        seed: Every group has its own generator, derived from this seed and from the group's names, so its
            resamples do not depend on the other groups or their order.
    """
    runs = [run for run in table.runs if study.stratum(run.levels) == name]
    task = runs[0].levels["task"]
    ends = _floor_and_reference(study, task, runs)
    is_normalized = ends is not None or any(run.normalized_score is not None for run in runs)
    tag = study.score.curve_tag
    lowest, highest = _curve_ends(table, runs, tag, ends if tag == study.score.tag else None)
    members: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.status != MISSING:
            members.setdefault((run.levels["scale"], run.levels["recipe"]), []).append(run)

    groups = {}
    for (scale, recipe), group in members.items():
        generator = np.random.default_rng([seed, zlib.crc32("\n".join((name, scale, recipe)).encode())])
        draws = draw(len(group), resamples, generator)
        scores = _column([run.final_score for run in group], group, ends[0] if ends else None)
        normalized = _column([run.normalized_score for run in group], group, 0.0 if is_normalized else None)
        lost = [1.0 if failed(run) else run.instability for run in group]
        defined = np.array([value for value in lost if _is_number(value)], dtype=float)
        curves = [None if failed(run) else table.curves.get((run.cell, tag)) for run in group]
        groups[scale, recipe] = Group(
            runs=group,
            scores=None if scores is None else scores[draws],
            normalized=None if normalized is None else normalized[draws],
            instabilities=defined[draw(len(defined), resamples, generator)] if defined.size else None,
            by_steps=group_curve([c and (c.steps, c.values) for c in curves], draws, lowest),
            by_seconds=group_curve([c and (c.seconds, c.values) for c in curves], draws, lowest),
        )
    return Stratum(name, task in study.compare.tuned_on, lowest, highest, groups)


def _column(values: Sequence[float | None], runs: Sequence[Run], floor: float | None) -> Floats | None:
    """Return one number per run, the floor for failed ones; ``None`` if a number is unknown."""
    column = [floor if failed(run) else value for value, run in zip(values, runs, strict=True)]
    return np.array(column, dtype=float) if all(map(_is_number, column)) else None


def _floor_and_reference(study: Study, task: str, runs: Sequence[Run]) -> tuple[float, float] | None:
    """Return the scores that count as 0 and 1, from the study or from the runs' normalized scores."""
    level = study.factors["task"][task]
    if level.floor is not None and level.reference is not None:
        return level.floor, level.reference
    points = sorted(
        (run.normalized_score, run.final_score)
        for run in runs
        if run.normalized_score is not None and run.final_score is not None and not failed(run)
    )
    if not points or points[0][0] == points[-1][0]:
        return None
    (low, low_score), (high, high_score) = points[0], points[-1]
    scale = (high_score - low_score) / (high - low)
    floor = low_score - low * scale
    return floor, floor + scale


def _curve_ends(
    table: Table, runs: Sequence[Run], tag: str, ends: tuple[float, float] | None
) -> tuple[float, float]:
    """Return a curve's scores for nothing learned and for solved; by default its range over all runs."""
    if ends is not None:
        return ends
    curves = [table.curves[run.cell, tag].values for run in runs if (run.cell, tag) in table.curves]
    values = [value for curve in curves for value in curve if math.isfinite(value)] or [0.0]
    return min(values), max(values)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
