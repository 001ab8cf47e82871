"""The headline figures: a recipe at a scale compared with the baseline, over one stratum or many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lit_gfs.metrics.intervals import (
    Floats,
    interquartile_means,
    optimality_gaps,
    probabilities_of_improvement,
)
from lit_gfs.study.planning.plan import Compare, Score
from lit_gfs.study.results.curves import least_speed_up, needed, own_target, speed_up
from lit_gfs.study.results.estimates import Figure, figure, missing
from lit_gfs.study.results.groups import Group, Stratum
from lit_gfs.study.results.verdicts import AIMS, outcomes, verdict

NO_SPEED = "the objective changes by design"
"""Note of a speed-up if the curve does not measure speed."""

ITSELF = "the baseline itself"
"""Note of a figure that would compare the baseline with itself."""

_AGAINST_OWN = (
    "ratio_at_scale",
    "compared_score",
    "score_difference",
    "stability_gain",
    "speed_up",
    "speed_up_seconds",
    "speed_up_to_base_score",
    "probability_of_improvement",
)
_AGAINST_BASE = ("ratio", "speed_up_over_base", "speed_up_over_base_seconds")


class Comparison(NamedTuple):
    """A group and the baseline's groups of its stratum. Samples are ``(1 + resamples,)``."""

    task: str
    """The name of the stratum."""
    group: Group
    own: Group | None
    """The baseline at the same scale."""
    base: Group | None
    """The baseline at the base scale."""
    steps_to_reach: Floats | None
    """Steps to the final score of ``own``; NaN if that did not learn, ``None`` if it has no curve."""
    speed_ups: dict[str, Floats | None]
    """Speed-ups by name of the figure; NaN if the baseline whose score is to be reached did not learn,
    ``None`` without a baseline."""


def compare(stratum: Stratum, scale: str, recipe: str, plan: Compare, score: Score) -> Comparison:
    """Compare a group with the baselines of its stratum.

    Args:
        stratum: The stratum.
        scale: Scale of the group.
        recipe: Recipe of the group.
        plan: Names the baseline recipe and scale.
        score: Says which last part of a run gives its final score, and whether its curve measures speed.
    """
    group = stratum.groups[scale, recipe]
    own = stratum.groups.get((scale, plan.baseline))
    base = stratum.groups.get((plan.base_scale, plan.baseline))
    steps_to_reach = None
    speeds: dict[str, Floats | None] = {}
    for name, baseline in (("speed_up", own), ("speed_up_over_base", base)):
        in_steps = in_seconds = None
        if not score.measures_speed:
            pass  # both stay unknown
        elif baseline is not None and (baseline.by_steps is None or baseline.by_seconds is None):
            in_steps = in_seconds = np.array([math.nan])  # all of its runs failed
        elif baseline is not None and baseline.by_steps is not None and baseline.by_seconds is not None:
            target = own_target(baseline.by_steps, score.final_share, stratum.lowest, stratum.highest)
            in_steps = speed_up(group.by_steps, baseline.by_steps, target)
            in_seconds = speed_up(group.by_seconds, baseline.by_seconds, target)
            if baseline is own and group.by_steps is not None:
                steps_to_reach = np.where(target.learned, needed(group.by_steps, target.score), math.nan)
        speeds |= {name: in_steps, f"{name}_seconds": in_seconds}
    speeds["speed_up_to_base_score"] = _to_base_score(stratum, group, own, base, score)
    # Resampled curves of a whole study would fill the memory, and no other figure needs them.
    small = [group and group._replace(by_steps=None, by_seconds=None) for group in (own, base)]
    group = group._replace(by_steps=None, by_seconds=None)
    return Comparison(stratum.name, group, small[0], small[1], steps_to_reach, speeds)


def _to_base_score(
    stratum: Stratum, group: Group, own: Group | None, base: Group | None, score: Score
) -> Floats | None:
    if own is None or base is None or not score.measures_speed:
        return None
    if base.by_steps is None:  # all of its runs failed
        return np.array([math.nan])
    target = own_target(base.by_steps, score.final_share, stratum.lowest, stratum.highest)
    return least_speed_up(group.by_steps, own.by_steps, target)


def size_hurts(own: Group | None, base: Group | None) -> bool | None:
    """Return whether a baseline falls behind itself at the base scale, by the estimate alone.

    Args:
        own: The baseline at a scale.
        base: The same recipe at the base scale.

    Returns:
        Whether its IQM of normalized final scores is lower; ``None`` if one of them is not known.
    """
    if own is None or base is None or own.normalized is None or base.normalized is None:
        return None
    return bool(interquartile_means([own.normalized[0]]) < interquartile_means([base.normalized[0]]))


def headline(strata: Sequence[Comparison]) -> dict[str, Figure]:
    """Compute the figures of a recipe at a scale over strata that no baseline takes part in."""
    return {
        "normalized_score": _over(strata, interquartile_means, _scores),
        "instability": _over(strata, interquartile_means, _lost, unknown="never learned"),
        "optimality_gap": _over(strata, optimality_gaps, _scores),
    }


def against(
    scale: str, recipe: str, plan: Compare, strata: Sequence[Comparison], measures_speed: bool = True
) -> dict[str, Any]:
    """Compare a recipe at a scale with a baseline over strata.

    Args:
        scale: The scale.
        recipe: The recipe.
        plan: Names the baseline recipe and scale.
        strata: Its comparison in each of the strata, at least one.
        measures_speed: Whether their curves show how fast a run learns.

    Returns:
        Figures by name, ``verdicts`` by aim, and ``outcomes``: the tasks that are won, tied and lost against
        the baseline at the same scale. The baseline has no outcomes, and a verdict only on figures that do
        not compare it with itself.
    """
    no_own, no_base = f"no baseline at {scale}", f"no baseline at {plan.base_scale}"
    own_speed, base_speed = (no_own, no_base) if measures_speed else (NO_SPEED, NO_SPEED)
    if any(comparison.own is not None for comparison in strata):
        no_gain = "one of the two never learned"
    else:
        no_gain = no_own
    figures = {
        "baseline_score": _over(strata, interquartile_means, _own_scores, unknown=no_own),
        "ratio": _over(
            strata, _ratios, _scores, _base_scores, unknown=no_base, undefined="baseline at the floor"
        ),
        "ratio_at_scale": _over(
            strata, _ratios, _scores, _own_scores, unknown=no_own, undefined="baseline at the floor"
        ),
        "compared_score": _over(strata, _first, _scores, _own_scores, unknown=no_own),
        "score_difference": _over(strata, _differences, _scores, _own_scores, unknown=no_own),
        "baseline_instability": _over(strata, interquartile_means, _own_lost, unknown="never learned"),
        "stability_gain": _over(
            strata, _gains, _lost, _own_lost, unknown=no_gain, undefined="baseline lost nothing", best=1.0
        ),
        "speed_up": _median_speed_up(strata, "speed_up", own_speed),
        "speed_up_seconds": _median_speed_up(strata, "speed_up_seconds", own_speed),
        "speed_up_to_base_score": _median_speed_up(strata, "speed_up_to_base_score", own_speed),
        "speed_up_over_base": _median_speed_up(strata, "speed_up_over_base", base_speed),
        "speed_up_over_base_seconds": _median_speed_up(strata, "speed_up_over_base_seconds", base_speed),
        "probability_of_improvement": _over(
            strata, probabilities_of_improvement, _scores, _own_scores, unknown=no_own
        ),
    }
    if recipe == plan.baseline:
        itself = _AGAINST_OWN + (_AGAINST_BASE if scale == plan.base_scale else ())
        figures |= {name: missing(ITSELF) for name in itself}
        sides = []
    else:
        sides = [(each.task, each.group.scores, each.own and each.own.scores) for each in strata]
    return {
        **figures,
        "verdicts": {name: verdict(name, figures[name]) for name in AIMS if figures[name]["note"] != ITSELF},
        "outcomes": outcomes(sides),
    }


def _scores(comparison: Comparison) -> Floats | None:
    return comparison.group.normalized


def _own_scores(comparison: Comparison) -> Floats | None:
    return comparison.own.normalized if comparison.own else None


def _base_scores(comparison: Comparison) -> Floats | None:
    return comparison.base.normalized if comparison.base else None


def _lost(comparison: Comparison) -> Floats | None:
    return comparison.group.instabilities


def _own_lost(comparison: Comparison) -> Floats | None:
    return comparison.own.instabilities if comparison.own else None


def _ratios(scores: Sequence[Floats], base: Sequence[Floats]) -> Floats:
    numerator, unit = interquartile_means(scores), interquartile_means(base)
    # Division by 0 gives an infinite ratio in a resample, and an undefined one in the sample itself.
    ratios = np.where(numerator > 0, np.inf, np.nan)
    ratios[0] = np.nan
    return np.divide(numerator, unit, out=ratios, where=unit > 0)


def _first(scores: Sequence[Floats], _: Sequence[Floats]) -> Floats:
    return interquartile_means(scores)


def _differences(scores: Sequence[Floats], own: Sequence[Floats]) -> Floats:
    return interquartile_means(scores) - interquartile_means(own)


def _gains(lost: Sequence[Floats], baseline: Sequence[Floats]) -> Floats:
    numerator, unit = interquartile_means(lost), interquartile_means(baseline)
    return 1 - np.divide(numerator, unit, out=np.full_like(unit, np.nan), where=unit > 0)


def _over(
    strata: Sequence[Comparison],
    statistic: Callable[..., Floats],
    *samples: Callable[[Comparison], Floats | None],
    unknown: str = "no floor and reference",
    undefined: str = "",
    best: float = math.inf,
) -> Figure:
    """Compute a statistic over the strata that have all of its samples."""
    rows = [[sample(comparison) for sample in samples] for comparison in strata]
    known = [[sample for sample in row if sample is not None] for row in rows]
    complete = [row for row in known if len(row) == len(samples)]
    if not complete:
        return missing(unknown)
    runs = min(sample.shape[-1] for row in complete for sample in row)
    statistics = statistic(*zip(*complete, strict=True))
    return figure(statistics, runs, len(complete), undefined, best=best)


def _median_speed_up(strata: Sequence[Comparison], name: str, unknown: str) -> Figure:
    """Take the median over the strata in which the baseline learned."""
    known = [(factors, c) for c in strata if (factors := c.speed_ups[name]) is not None]
    defined = [(factors, c) for factors, c in known if not math.isnan(factors[0])]
    if not defined:
        return missing("baseline did not learn" if known else unknown)
    baselines = [c.base if "base" in name else c.own for _, c in defined]
    runs = min(len(group.runs) for group in [*(c.group for _, c in defined), *baselines] if group)
    medians = np.median(np.stack([factors for factors, _ in defined]), axis=0)
    return figure(medians, runs, len(defined), worst=0.0)
