"""Rules on the state of a network: its features, its units, and the gradients of its layers.

Each returns its findings, or ``None`` if its series are missing or too short. The evidence for the thresholds
is in ``docs/results/diagnosis.md``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import accumulate
from statistics import median

from lit_gfs.metrics.findings import EVALUATION, Finding, Scalars, Symptom
from lit_gfs.metrics.series import Series

RANK = "representation/effective_rank"
DORMANT = "representation/dormant_share"
DORMANT_LAYER = "representation/dormant/"
NORM = "gradient_flow/norm/"

_ABOUT_FEATURES = "section 2"
_ABOUT_GRADIENTS = "section 1"
_OPENING = "--gfs.path_init true --gfs.path_init.mirrored true"

COLLAPSED = Symptom(
    "features collapsed",
    8,
    1.0,
    f"{_OPENING} --gfs.temporal_clipping true, or a ResidualTrunk",
    _ABOUT_FEATURES,
)
RANK_LIMIT = 2.5
"""Largest effective rank of collapsed features: in so few directions, most action values move together."""
RANK_SHARE = 1 / 6
"""The same as a share of the highest rank so far. DQN on CartPole learns with a quarter of its first rank."""
RANK_ALONE = 1.2
"""At most this rank is a collapse, no matter how high it was before."""
SUCCESS_MARGIN = 0.1
"""A policy is at its best within this share of its gain. One that balances a pole needs one feature."""


def collapsed_features(scalars: Scalars) -> list[Finding] | None:
    """Find features that use hardly more than one direction."""
    if (rank := COLLAPSED.series(scalars, RANK)) is None:
        return None
    highest = list(accumulate(rank.values, max))
    evaluation = scalars.get(EVALUATION, Series([], []))
    holds = [
        (value <= RANK_ALONE or value <= min(RANK_LIMIT, RANK_SHARE * most))
        and not _succeeds(evaluation, step)
        for step, value, most in zip(rank.steps, rank.values, highest, strict=True)
    ]
    return COLLAPSED.find(
        rank.steps,
        holds,
        lambda points: (
            f"the effective rank is {min(rank.values[point] for point in points):.3g}, "
            f"and was up to {highest[-1]:.3g}"
        ),
    )


def _succeeds(evaluation: Series, step: int) -> bool:
    """Return whether the evaluations up to a step have risen, and the last is about the best of them."""
    known = [value for at, value in zip(evaluation.steps, evaluation.values, strict=True) if at <= step]
    if not known:
        return False
    gain = max(known) - known[0]
    return gain > 0 and known[-1] >= max(known) - SUCCESS_MARGIN * gain


DORMANT_UNITS = Symptom(
    "dormant units",
    3,
    1.0,
    "a smaller --model.optimizer.init_args.lr, or --model.trunk.init_args.norm layer",
    _ABOUT_FEATURES,
)
DORMANT_LIMIT = 0.75
"""Share of dormant units over all layers. DQN on CartPole learns with 0.6."""
DEAD_LAYER_LIMIT = 0.95
"""Share of dormant units of one layer: it passes on next to nothing, whatever the other layers do."""


def dormant_units(scalars: Scalars) -> list[Finding] | None:
    """Find dormant units: most of all, or nearly all of one layer."""
    if DORMANT_UNITS.series(scalars, DORMANT) is None:
        return None
    found: list[Finding] = []
    layers = sorted(tag for tag in scalars if tag.startswith(DORMANT_LAYER))
    for tag in (DORMANT, *layers):
        steps, values = scalars[tag]
        limit = DORMANT_LIMIT if tag == DORMANT else DEAD_LAYER_LIMIT
        whose = "all units" if tag == DORMANT else f"the units of {tag.removeprefix(DORMANT_LAYER)}"

        def text(points: list[int], values: Sequence[float] = values, whose: str = whose) -> str:
            return f"{max(values[point] for point in points):.0%} of {whose} hardly react to any state"

        found += DORMANT_UNITS.find(steps, [value >= limit for value in values], text)
    return _first(found)


STARVING = Symptom(
    "starving layers",
    5,
    0.8,
    f"{_OPENING}, --gfs.gradient_normalization true, or a smaller rate",
    _ABOUT_GRADIENTS,
)
STARVING_LIMIT = 0.1
"""Largest ratio of the gradient norms of a chain's first and last quarter if its first layers starve."""
EXPLODING = Symptom(
    "exploding layers", 5, 0.8, f"{_OPENING}, or --gfs.gradient_normalization true", _ABOUT_GRADIENTS
)
EXPLODING_LIMIT = 30.0
"""Smallest such ratio if gradients explode on their way down; healthy deep networks reach 10."""
SHORTEST_CHAIN = 4
"""Layers of a chain with a first and a last quarter worth comparing."""


def uneven_layers(scalars: Scalars) -> list[Finding] | None:
    """Find chains of layers whose first layers get far smaller or far larger gradients than their last.

    A chain consists of layers whose names differ in numbers alone, such as ``trunk.layers.3``. Layers of
    other kinds, such as norms and branches, also have other gradients in a healthy network.
    """
    found: list[Finding] = []
    judged = False
    for chain in chains(tag.removeprefix(NORM) for tag in scalars if tag.startswith(NORM)):
        steps, ratios = first_to_last([scalars[NORM + layer] for layer in chain])
        judged |= len(steps) >= STARVING.points

        def text(points: list[int], ratios: Sequence[float] = ratios, chain: list[str] = chain) -> str:
            ratio = median(ratios[point] for point in points)
            return f"gradients near {chain[0]} are {ratio:.2g} times those near {chain[-1]}"

        found += STARVING.find(steps, [ratio <= STARVING_LIMIT for ratio in ratios], text)
        found += EXPLODING.find(steps, [ratio >= EXPLODING_LIMIT for ratio in ratios], text)
    return _first(found) if judged else None


def chains(layers: Iterable[str]) -> list[list[str]]:
    """Group layers whose names differ in numbers alone, in their order; leave out short groups."""
    groups: dict[str, list[tuple[list[int], str]]] = {}
    for layer in layers:
        numbers = [int(number) for number in re.findall(r"\d+", layer)]
        groups.setdefault(re.sub(r"\d+", "#", layer), []).append((numbers, layer))
    return [
        [layer for _, layer in sorted(group)] for group in groups.values() if len(group) >= SHORTEST_CHAIN
    ]


def first_to_last(norms: Sequence[Series]) -> Series:
    """Divide the geometric mean of the norms of a chain's first quarter by that of its last quarter.

    Args:
        norms: Gradient norms of a chain's layers, in order.

    Returns:
        The ratio at all steps that every layer has: 0 if a first layer has no gradient. Steps with a last
        layer without gradient, or with a norm that is not finite, are left out.
    """
    by_step = [dict(zip(*series, strict=True)) for series in norms]
    quarter = max(1, len(norms) // 4)
    steps, ratios = [], []
    for step in sorted(set(by_step[0]).intersection(*by_step[1:])):
        first, last = (
            sum(_logarithm(values[step]) for values in part) / quarter
            for part in (by_step[:quarter], by_step[-quarter:])
        )
        if math.isfinite(last) and not math.isnan(first):
            steps.append(step)
            ratios.append(math.exp(first - last))
    return Series(steps, ratios)


def _logarithm(norm: float) -> float:
    if norm == 0:
        return -math.inf
    return math.log(norm) if math.isfinite(norm) else math.nan


def _first(findings: list[Finding]) -> list[Finding]:
    """Keep one finding of several with the same cause: one that lasts, and of those the earliest."""
    return sorted(findings, key=lambda finding: (not finding.lasts, finding.since))[:1]
