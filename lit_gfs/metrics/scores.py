"""Scores that compare across games, and how to aggregate them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from lit_gfs.metrics.atari_scores import ATARI_SCORES

_GAME = re.compile(r"(?:ALE/)?(?P<game>\w+?)(?:NoFrameskip|Deterministic)?(?:-ram)?(?:-v\d+)?")
_SCORES = {game.lower(): scores for game, scores in ATARI_SCORES.items()}


def human_normalized_score(env_id: str, score: float) -> float | None:
    """Place an Atari score on the line from a random agent (0) to a human tester (1).

    Args:
        env_id: An environment id such as ``ALE/UpNDown-v5`` or ``UpNDownNoFrameskip-v4``, or a game's name,
            ``UpNDown`` or ``up_n_down``.
        score: Mean undiscounted, unclipped return of full games.

    Returns:
        (score - random) / (human - random), or ``None`` for an environment without a human reference:
        another suite, or a game outside of the usual 57.
    """
    match = _GAME.fullmatch(env_id)
    reference = _SCORES.get(match["game"].replace("_", "").lower()) if match else None
    if reference is None:
        return None
    random_score, human_score = reference
    return (score - random_score) / (human_score - random_score)


def interquartile_mean(scores: Iterable[float]) -> float:
    """Return the mean of the middle half of all scores (Agarwal et al. 2021, "Statistical precipice").

    A quarter of the scores, rounded down, is left out on each side, as in ``scipy.stats.trim_mean``.

    Args:
        scores: Scores of all runs on all tasks, flat.

    Raises:
        ValueError: If there is no score, or one is not a number: trimming would hide it.
    """
    ordered = sorted(scores)
    if not ordered or any(math.isnan(score) for score in ordered):
        raise ValueError(f"expected at least one score and no NaN, got {ordered}")
    trimmed = len(ordered) // 4
    middle = ordered[trimmed : len(ordered) - trimmed]
    return math.fsum(middle) / len(middle)
