"""Scores of single runs: normalized scores, final score, instability, and steps to a threshold.

Evaluations are a sequence of scores (higher is better) with their environment steps, which do not decrease.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_gfs.metrics.atari_scores import ATARI_SCORES

_GAME = re.compile(
    r"(?P<suite>ALE/)?(?P<game>\w+?)(?:-ram)?(?P<kind>NoFrameskip|Deterministic)?(?P<version>-v\d+)?"
)
_SCORES = {game.lower(): scores for game, scores in ATARI_SCORES.items()}


def human_normalized_score(env_id: str, score: float) -> float | None:
    """Normalize an Atari score: a random agent has 0, a human tester has 1.

    Args:
        env_id: An environment id such as ``ALE/UpNDown-v5`` or ``UpNDownNoFrameskip-v4``, or the name of a
            game, such as ``UpNDown`` or ``up_n_down``. An id such as ``Tennis-v0``, with only a version, does
            not count as an Atari game.
        score: Mean undiscounted, unclipped return of full games.

    Returns:
        (score - random) / (human - random), or ``None`` for other environments and for games outside of the
        usual 57.
    """
    match = _GAME.fullmatch(env_id)
    if match is None or (match["version"] and not (match["suite"] or match["kind"])):
        return None
    reference = _SCORES.get(match["game"].replace("_", "").lower())
    if reference is None:
        return None
    return normalized_score(score, *reference)


def normalized_score(score: float, floor: float, reference: float) -> float:
    """Normalize a score: an untrained agent has 0, an agent that solves the task has 1.

    Args:
        score: The score.
        floor: Score of an untrained agent.
        reference: Score at which the task counts as solved.

    Raises:
        ValueError: If floor and reference are the same.
    """
    if floor == reference:
        raise ValueError(f"expected a reference other than the floor, got {reference} for both")
    return (score - floor) / (reference - floor)


def final_score(steps: Sequence[float], scores: Sequence[float], share: float = 0.1) -> float:
    """Return the mean score at the end of a run.

    Args:
        steps: Steps of the E evaluations; the last one is the length of the run.
        scores: Scores of the evaluations, ``(E,)``.
        share: Share of the run to average over, from its end; above 0 and at most 1.

    Returns:
        The mean over evaluations at steps greater than ``(1 - share) * steps[-1]``; NaN if any of them is
        NaN.

    Raises:
        ValueError: If there is no evaluation.
    """
    _require_evaluations(steps, scores)
    start = (1 - share) * steps[-1]
    # In a run of length 0, the last evaluation counts.
    last = [score for step, score in zip(steps, scores, strict=True) if step > start] or scores[-1:]
    return math.fsum(last) / len(last)


def smooth(scores: Sequence[float], window: int = 3) -> list[float]:
    """Return the trailing mean of evaluations; the window is shorter at the start.

    Args:
        scores: Scores ``(E,)``.
        window: Largest number of evaluations to average, at least 1.

    Returns:
        Smoothed scores ``(E,)``.
    """
    parts = (scores[max(0, end - window) : end] for end in range(1, len(scores) + 1))
    return [math.fsum(part) / len(part) for part in parts]


def instability(scores: Sequence[float], start: float | None = None) -> float:
    """Return the share of its improvement that a run has lost again, averaged over the run.

    At each point of the smoothed curve, the share is ``(best - current) / (best - start)``, where ``best`` is
    the best score so far. It is 0 at a new best, and 1 if the run is back at its start. It stays 1 below the
    start; otherwise a lucky first evaluation could dominate the mean. Before the first improvement it is 0.

    Args:
        scores: Scores ``(E,)`` of evaluations at equal distances.
        start: Score of an untrained agent; ``None`` uses the first evaluation, at which some runs have
            already solved the task.

    Returns:
        The mean, from 0 to 1; NaN if the run never rises above its start, or if any score is NaN.
    """
    curve = np.asarray(smooth(scores), dtype=float)
    if curve.size == 0 or np.isnan(curve).any():
        return math.nan
    start = curve[0] if start is None else start
    best = np.maximum(np.maximum.accumulate(curve), start)
    learned = best - start
    if learned[-1] <= 0:
        return math.nan
    rose = learned > 0
    lost = (best - curve)[rose] / learned[rose]
    return float(np.minimum(lost, 1.0).sum() / curve.size)


def steps_to_reach(steps: Sequence[float], scores: Sequence[float], threshold: float) -> float:
    """Return the step at which a run first reaches a score.

    Args:
        steps: Steps of the E evaluations.
        scores: Scores of the evaluations, ``(E,)``.
        threshold: The score to reach.

    Returns:
        The step at which the smoothed curve, linear between evaluations, first reaches the threshold;
        infinity if it never does.

    Raises:
        ValueError: If there is no evaluation.
    """
    _require_evaluations(steps, scores)
    return float(first_crossing(steps, smooth(scores), threshold))


def first_crossing(x: ArrayLike, curves: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """Find the points at which curves first reach a threshold.

    Args:
        x: Points of the horizontal axis, not decreasing, ``(G,)``.
        curves: Values at these points, ``(..., G)``; linear between them.
        thresholds: A threshold for each curve, ``(...)``.

    Returns:
        Points of the horizontal axis, ``(...)``: the first point for a curve that starts at or above its
        threshold, infinity for a curve that never reaches it.
    """
    x, curves, thresholds = (np.asarray(values, dtype=float) for values in (x, curves, thresholds))
    reached = curves >= thresholds[..., None]
    after = reached.argmax(-1)
    before = np.maximum(after - 1, 0)
    # Interpolate linearly between the last point below the threshold and the first one at or above it.
    low = np.take_along_axis(curves, before[..., None], -1)[..., 0]
    high = np.take_along_axis(curves, after[..., None], -1)[..., 0]
    rise = high - low
    share = np.divide(thresholds - low, rise, out=np.zeros_like(rise), where=rise > 0)
    return np.where(reached.any(-1), x[before] + share * (x[after] - x[before]), np.inf)


def _require_evaluations(steps: Sequence[float], scores: Sequence[float]) -> None:
    if not steps or len(steps) != len(scores):
        raise ValueError(
            f"expected as many scores as steps and at least one, got {len(scores)} and {len(steps)}"
        )
