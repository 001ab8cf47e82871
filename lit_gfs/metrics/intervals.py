"""Aggregates over many runs on many tasks, with stratified bootstrap intervals.

The definitions are those of Agarwal et al. (2021), "Deep reinforcement learning at the edge of the
statistical precipice", and of its library rliable. Runs are resampled with replacement within each stratum
(task), never across strata. Every statistic takes a list of strata, each an array ``(..., runs)``, and works
along the last axis: the same function serves the sample and all its resamples at once. Strata may differ in
their number of runs::

    generator = np.random.default_rng(0)
    strata = [resample(scores, 2_000, generator) for scores in scores_by_task]
    value, low, high = estimate(interquartile_means(strata))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A statistic of a sample and its interval."""

    value: float
    low: float
    high: float


def draw(runs: int, resamples: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """Draw which runs make up each resample.

    Args:
        runs: Number of runs of the stratum.
        resamples: Number of resamples.
        generator: Draws them.

    Returns:
        Indices ``(1 + resamples, runs)``. Row 0 is the sample itself, every run once, so that one call
        computes a statistic and its resamples.
    """
    drawn = generator.integers(0, runs, size=(resamples, runs), dtype=np.intp)
    return np.concatenate([np.arange(runs, dtype=np.intp)[None], drawn])


def resample(scores: ArrayLike, resamples: int, generator: np.random.Generator) -> Floats:
    """Resample the runs of one stratum with replacement.

    Args:
        scores: Scores ``(runs,)``.
        resamples: Number of resamples.
        generator: Draws them.

    Returns:
        Scores ``(1 + resamples, runs)``; row 0 is the sample itself.
    """
    values = np.asarray(scores, dtype=float)
    return values[draw(len(values), resamples, generator)]


def interquartile_means(strata: Sequence[ArrayLike]) -> Floats:
    """Return the mean of the middle half of the scores of all strata together.

    Args:
        strata: Scores ``(..., runs)`` of each stratum.

    Returns:
        Means ``(...)``; a quarter of the scores, rounded down, is left out on each side.
    """
    # Its import takes most of a second, which whoever imports this module for a plain run should not pay.
    from scipy.stats import trim_mean

    return np.asarray(trim_mean(_pooled(strata), 0.25, axis=-1))


def optimality_gaps(strata: Sequence[ArrayLike], target: float = 1.0) -> Floats:
    """Return by how much scores fall short of a target on average; scores above it do not make up for others.

    Args:
        strata: Normalized scores ``(..., runs)`` of each stratum.
        target: The score that is good enough.

    Returns:
        Gaps ``(...)``, lower being better.
    """
    return target - np.minimum(_pooled(strata), target).mean(-1)


def probabilities_of_improvement(strata: Sequence[ArrayLike], others: Sequence[ArrayLike]) -> Floats:
    """Return how likely a run scores higher than another's on a random stratum; a tie counts one half.

    Per stratum it is the Mann-Whitney statistic U divided by the number of pairs; strata weigh the same.

    Args:
        strata: Scores ``(..., runs)`` of each stratum.
        others: Scores ``(..., runs)`` of what to compare with, in the same strata.

    Returns:
        Probabilities ``(...)``.
    """
    pairs = [
        (np.asarray(scores)[..., :, None], np.asarray(other)[..., None, :])
        for scores, other in zip(strata, others, strict=True)
    ]
    return np.mean([((a > b) + 0.5 * (a == b)).mean((-2, -1)) for a, b in pairs], axis=0)


def estimate(
    statistics: ArrayLike, level: float = 0.95, worst: float = -np.inf, best: float = np.inf
) -> Estimate:
    """Turn a statistic of the sample and of its resamples into a value and a percentile interval.

    The ends are resamples' own values, the next ones outwards, so that they are right for values that are not
    finite, too.

    Args:
        statistics: ``(1 + resamples,)``, the sample first. NaN says that a statistic is not defined for a
            resample: it could have been anything, and counts as ``worst`` for the lower end and as ``best``
            for the upper one.
        level: Share of resamples inside of the interval.
        worst: The lowest value that the statistic can have.
        best: The highest value that it can have.
    """
    value, *_ = values = np.asarray(statistics, dtype=float)
    undefined, tail = np.isnan(values[1:]), (1 - level) / 2
    low = np.quantile(np.where(undefined, worst, values[1:]), tail, method="lower")
    high = np.quantile(np.where(undefined, best, values[1:]), 1 - tail, method="higher")
    return Estimate(float(value), float(low), float(high))


def _pooled(strata: Sequence[ArrayLike]) -> Floats:
    return np.concatenate([np.asarray(scores, dtype=float) for scores in strata], axis=-1)
