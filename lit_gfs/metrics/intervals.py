"""Aggregates over many runs on many tasks, with stratified bootstrap intervals.

The definitions follow Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical
precipice", and its library rliable. Runs are resampled with replacement within each stratum (task), never
across strata. Every statistic takes a list of strata, each an array ``(..., runs)``, and reduces the last
axis. So one call computes the statistic of the sample and of all resamples. Strata may have different numbers
of runs::

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
    """A statistic of a sample and the ends of its interval."""

    value: float
    low: float
    high: float


def draw(runs: int, resamples: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """Draw the indices of the runs in each resample.

    Args:
        runs: Number of runs of the stratum.
        resamples: Number of resamples.
        generator: Random generator.

    Returns:
        Indices ``(1 + resamples, runs)``. Row 0 is the sample itself, with each run once.
    """
    drawn = generator.integers(0, runs, size=(resamples, runs), dtype=np.intp)
    return np.concatenate([np.arange(runs, dtype=np.intp)[None], drawn])


def resample(scores: ArrayLike, resamples: int, generator: np.random.Generator) -> Floats:
    """Resample the runs of one stratum with replacement.

    Args:
        scores: Scores ``(runs,)``.
        resamples: Number of resamples.
        generator: Random generator.

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
        Means ``(...)``, without a quarter of the scores (rounded down) on each side.
    """
    # This import takes most of a second, which plain runs should not pay.
    from scipy.stats import trim_mean

    return np.asarray(trim_mean(_pooled(strata), 0.25, axis=-1))


def optimality_gaps(strata: Sequence[ArrayLike], target: float = 1.0) -> Floats:
    """Return the mean shortfall of scores below a target; scores above the target count as the target.

    Args:
        strata: Normalized scores ``(..., runs)`` of each stratum.
        target: The target score.

    Returns:
        Gaps ``(...)``; lower is better.
    """
    return target - np.minimum(_pooled(strata), target).mean(-1)


def probabilities_of_improvement(strata: Sequence[ArrayLike], others: Sequence[ArrayLike]) -> Floats:
    """Return the probability that a run scores higher than a run of the others; a tie counts one half.

    Per stratum, it is the Mann-Whitney statistic U divided by the number of pairs. The result is the mean
    over the strata.

    Args:
        strata: Scores ``(..., runs)`` of each stratum.
        others: Scores ``(..., runs)`` of the other algorithm, in the same strata.

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
    """Return the statistic of the sample with its percentile interval over the resamples.

    Each end is the value of a resample, rounded outwards. Without interpolation, the ends are also correct
    for non-finite values.

    Args:
        statistics: Statistics ``(1 + resamples,)``, that of the sample first. NaN means that the statistic of
            a resample is undefined. It counts as ``worst`` for the lower end and as ``best`` for the upper
            end.
        level: Share of resamples inside the interval.
        worst: Lowest possible value of the statistic.
        best: Highest possible value of the statistic.
    """
    value, *_ = values = np.asarray(statistics, dtype=float)
    undefined, tail = np.isnan(values[1:]), (1 - level) / 2
    low = np.quantile(np.where(undefined, worst, values[1:]), tail, method="lower")
    high = np.quantile(np.where(undefined, best, values[1:]), 1 - tail, method="higher")
    return Estimate(float(value), float(low), float(high))


def _pooled(strata: Sequence[ArrayLike]) -> Floats:
    return np.concatenate([np.asarray(scores, dtype=float) for scores in strata], axis=-1)
