"""Learning curves of groups of runs: the interquartile mean over runs, and the steps to reach a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_gfs.metrics.intervals import Floats, interquartile_means
from lit_gfs.metrics.scores import first_crossing, smooth

MOST_POINTS = 100
LEARNED = 0.05
"""A run has learned if it rises by at least this share of the way from the lowest to the highest score."""


class GroupCurve(NamedTuple):
    """Interquartile mean of the smoothed curves of a group's runs, and of its resamples."""

    x: Floats
    """Steps or seconds, ``(G,)``."""
    values: Floats
    """Scores ``(1 + resamples, G)``; row 0 is the sample itself."""


class Target(NamedTuple):
    """Final score of a baseline, for the sample and each resample, ``(1 + resamples,)``."""

    score: Floats
    learned: NDArray[np.bool_]
    """Whether the baseline rose to the score from below; otherwise there is no speed to compare with."""


def group_curve(
    curves: Sequence[tuple[Sequence[float], Sequence[float]] | None],
    draws: NDArray[np.intp],
    lowest: float,
) -> GroupCurve | None:
    """Average the curves of runs, and of resampled runs.

    Every run is smoothed, then interpolated on common points. A run has its first score before its first
    evaluation, and its last score after the last one.

    Args:
        curves: x and scores of each of the n runs; ``None`` for a run without a curve, which counts as the
            lowest score throughout.
        draws: The runs of each resample, ``(1 + resamples, n)``.
        lowest: The score of a failed run, and the replacement for scores that are not finite.

    Returns:
        The curve, or ``None`` if no run has one.
    """
    known = [curve for curve in curves if curve is not None]
    if not known:
        return None
    x = np.unique(np.concatenate([np.asarray(points, dtype=float) for points, _ in known]))
    if len(x) > MOST_POINTS:
        x = x[np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int)]
    rows = np.full((len(curves), len(x)), lowest, dtype=float)  # a floor of -500 is an integer in YAML
    for row, curve in zip(rows, curves, strict=True):
        if curve is not None:
            points, scores = curve
            finite = np.where(np.isfinite(scores), scores, lowest)
            row[:] = np.interp(x, points, smooth(finite.tolist()))
    # The order of runs does not change their mean: 5 runs have only 126 different resamples.
    distinct, where = np.unique(np.sort(draws, axis=1), axis=0, return_inverse=True)
    means = interquartile_means([rows.T[:, distinct]]).T
    return GroupCurve(x, means[where.reshape(-1)])


def own_target(baseline: GroupCurve, share: float, lowest: float, highest: float) -> Target:
    """Return a baseline's final score: the mean of its curve over the last share of the steps.

    Args:
        baseline: The baseline's curve against steps.
        share: The last share of the steps.
        lowest: Score of a run that learned nothing.
        highest: Score that counts as solved.
    """
    last = baseline.x > (1 - share) * baseline.x[-1]
    last[-1] = True
    score = baseline.values[:, last].mean(1)
    start = np.maximum(baseline.values[:, 0], lowest)
    return Target(score, score - start >= LEARNED * (highest - lowest))


def needed(curve: GroupCurve, score: Floats) -> Floats:
    """Return the x at which each resample first reaches a score, ``(1 + resamples,)``; infinity if never."""
    # Rounding must not keep a curve with a level end from reaching its own mean.
    tolerance = 1e-9 * np.maximum(1.0, np.abs(score))
    crossing = first_crossing(curve.x, curve.values, score - tolerance)
    # If an evaluation before the first step counted, every later point would be infinitely slow.
    positive = curve.x[curve.x > 0]
    return np.maximum(crossing, positive[0]) if positive.size else crossing


def speed_up(curve: GroupCurve | None, baseline: GroupCurve, target: Target) -> Floats:
    """Divide the baseline's steps to its own final score by a group's steps to that score.

    Args:
        curve: The group's curve; ``None`` if all its runs failed.
        baseline: The baseline's curve, along the same axis (steps or seconds).
        target: The baseline's own final score.

    Returns:
        Factors ``(1 + resamples,)``: 0 if the group never reaches the score, NaN if the baseline did not
        learn.
    """
    # Against time, the mean over runs of different speed can stay a little below the final score.
    score = np.minimum(target.score, baseline.values.max(1))
    own = needed(baseline, score)
    factor = np.zeros_like(own) if curve is None else own / needed(curve, score)
    return np.where(target.learned, factor, np.nan)


def least_speed_up(curve: GroupCurve | None, baseline: GroupCurve | None, target: Target) -> Floats:
    """Divide a baseline's steps to a score that another group set by a group's steps to it.

    A baseline that never reaches the score counts as if its last step did, so the true factor may be larger.

    Args:
        curve: The group's curve; ``None`` if all its runs failed.
        baseline: The baseline's curve against steps; ``None`` if all its runs failed.
        target: The score, and whether the group that set it learned.

    Returns:
        Factors ``(1 + resamples,)``: 0 if the group never reaches the score, NaN if the one that set it did
        not learn.
    """
    if curve is None:
        return np.where(target.learned, 0.0, np.nan)
    last = (curve if baseline is None else baseline).x[-1]
    own = last if baseline is None else np.minimum(needed(baseline, target.score), last)
    return np.where(target.learned, own / needed(curve, target.score), np.nan)
