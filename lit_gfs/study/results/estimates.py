"""Estimates with intervals, as they stand in ``summary.json``."""

from __future__ import annotations

import math
from typing import Any

from lit_gfs.metrics.intervals import Floats, estimate

Figure = dict[str, Any]
"""An estimate: ``value``, ``interval``, ``note`` (why one is unknown) and ``strata`` (number of strata)."""


def figure(
    statistics: Floats,
    runs: int,
    strata: int = 1,
    undefined: str = "",
    worst: float = -math.inf,
    best: float = math.inf,
) -> Figure:
    """Turn a statistic of the sample and its resamples into a figure.

    Args:
        statistics: ``(1 + resamples,)``, the sample first.
        runs: Number of runs of the smallest group; a single run has no interval.
        strata: Number of strata that the statistic covers.
        undefined: The reason if the statistic is NaN.
        worst: Lowest possible value.
        best: Highest possible value.
    """
    if math.isnan(statistics[0]):
        return missing(undefined)
    value, low, high = estimate(statistics, worst=worst, best=best)
    if runs < 2:
        return {"value": value, "interval": None, "note": "one seed", "strata": strata}
    return {"value": value, "interval": [low, high], "note": "", "strata": strata}


def missing(why: str) -> Figure:
    """Return an undefined or unknown figure."""
    return {"value": None, "interval": None, "note": why, "strata": 0}
