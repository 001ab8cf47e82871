"""Scores of single runs: how well a run ended, how steadily and how fast it learned, and what that is worth.

Evaluations are a sequence of scores, higher being better, and the environment steps at which they were made,
never decreasing.
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
    """Place an Atari score on the line from a random agent (0) to a human tester (1).

    Args:
        env_id: An environment id such as ``ALE/UpNDown-v5`` or ``UpNDownNoFrameskip-v4``, or a game's name,
            ``UpNDown`` or ``up_n_down``. A version alone, as in ``Tennis-v0``, does not make it Atari's.
        score: Mean undiscounted, unclipped return of full games.

    Returns:
        (score - random) / (human - random), or ``None`` for an environment without a human reference:
        another suite, or a game outside of the usual 57.
    """
    match = _GAME.fullmatch(env_id)
    if match is None or (match["version"] and not (match["suite"] or match["kind"])):
        return None
    reference = _SCORES.get(match["game"].replace("_", "").lower())
    if reference is None:
        return None
    return normalized_score(score, *reference)


def normalized_score(score: float, floor: float, reference: float) -> float:
    """Place a score on the line from an agent that learned nothing (0) to one that solved the task (1).

    Args:
        score: The score.
        floor: Score of an agent that learned nothing.
        reference: Score that counts as solved.

    Raises:
        ValueError: If floor and reference are the same.
    """
    if floor == reference:
        raise ValueError(f"expected a reference other than the floor, got {reference} for both")
    return (score - floor) / (reference - floor)


def final_score(steps: Sequence[float], scores: Sequence[float], share: float = 0.1) -> float:
    """Return the mean score at the end of a run.

    Args:
        steps: Steps of the E evaluations; the last one is taken for the length of the run.
        scores: Their scores, ``(E,)``.
        share: The last part of the run that counts, above 0 and at most 1.

    Returns:
        The mean over evaluations at steps greater than ``(1 - share) * steps[-1]``; NaN if one of them is.

    Raises:
        ValueError: If there is no evaluation.
    """
    _require_evaluations(steps, scores)
    start = (1 - share) * steps[-1]
    # The last evaluation counts even where the run is of length 0.
    last = [score for step, score in zip(steps, scores, strict=True) if step > start] or scores[-1:]
    return math.fsum(last) / len(last)


def smooth(scores: Sequence[float], window: int = 3) -> list[float]:
    """Return the trailing mean of evaluations: each with those before it, as many as there are.

    Args:
        scores: Scores ``(E,)``.
        window: The most evaluations to average, at least 1.

    Returns:
        Smoothed scores ``(E,)``; the first is the first score.
    """
    parts = (scores[max(0, end - window) : end] for end in range(1, len(scores) + 1))
    return [math.fsum(part) / len(part) for part in parts]


def instability(scores: Sequence[float], start: float | None = None) -> float:
    """Return the share of what a run had learned that it had lost again, averaged over the run.

    At every point of the smoothed curve it is ``(best - current) / (best - start)``, with the best so far: 0
    at a new best, 1 for a run that is back where it began. A run that falls below its start has lost all, no
    more: it counts 1 there, because a start of chance could otherwise weigh more than the rest of the run.
    Points before the first rise count 0: there is nothing to lose.

    Args:
        scores: Scores ``(E,)`` of evaluations at equal distances.
        start: The score of an agent that learned nothing; ``None`` takes the first evaluation, which some
            runs have already solved the task by.

    Returns:
        The mean, from 0 to 1; NaN for a run that never rises above its start, or with a score that is NaN.
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
        scores: Their scores, ``(E,)``.
        threshold: The score to reach.

    Returns:
        Where the smoothed curve, straight between evaluations, first reaches the threshold; infinity if it
        never does.

    Raises:
        ValueError: If there is no evaluation.
    """
    _require_evaluations(steps, scores)
    return float(first_crossing(steps, smooth(scores), threshold))


def first_crossing(x: ArrayLike, curves: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """Find where curves first reach a threshold.

    Args:
        x: Points of the horizontal axis, never decreasing, ``(G,)``.
        curves: Values at these points, ``(..., G)``; straight in between.
        thresholds: A threshold for each curve, ``(...)``.

    Returns:
        Where, ``(...)``: the first point for a curve that begins at its threshold or above, infinity for one
        that never reaches it.
    """
    x, curves, thresholds = (np.asarray(values, dtype=float) for values in (x, curves, thresholds))
    reached = curves >= thresholds[..., None]
    after = reached.argmax(-1)
    before = np.maximum(after - 1, 0)
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
