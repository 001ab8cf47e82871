"""Rules on how a run learns: the size of its steps, and its returns.

Each returns its findings, or ``None`` if its series are missing or too short. The evidence for the thresholds
is in ``docs/results/diagnosis.md``.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from statistics import median

from lit_gfs.metrics.findings import EVALUATION, Finding, Scalars, Symptom
from lit_gfs.metrics.scores import smooth
from lit_gfs.metrics.series import Series

SKIPPED = "nan_guard/skipped_steps"
NONFINITE = "gradient_flow/nonfinite_layers"
TD_ERROR = "loss/td_error"
CHURN = "policy/churn"
HEAD_CHURN = "policy/churn_head"
KL = "loss/approx_kl"
TRAINING = "train/episode_return"
EPSILON = "schedule/epsilon"

_ABOUT_THE_REST = "section 4"
_SMALLER_RATE = "a smaller --model.optimizer.init_args.lr"

DIVERGENCE = Symptom(
    "divergence", 5, 0.6, f"{_SMALLER_RATE}, or --gfs.temporal_clipping true", _ABOUT_THE_REST
)
BLOW_UP = 100.0
"""A TD error that is so many times the median of all errors before has left the scale of the task."""


def divergence(scalars: Scalars) -> list[Finding] | None:
    """Find losses or gradients that are not finite again and again, and TD errors that blow up."""
    found: list[Finding] = []
    skipped, nonfinite, error = (DIVERGENCE.series(scalars, tag) for tag in (SKIPPED, NONFINITE, TD_ERROR))
    if skipped is not None:
        rises = [False, *(after > before for before, after in pairwise(skipped.values))]
        found += DIVERGENCE.find(
            skipped.steps, rises, lambda _: f"{skipped.values[-1]:,.0f} steps had no finite loss or gradient"
        )
    if nonfinite is not None:
        found += DIVERGENCE.find(
            nonfinite.steps,
            [layers > 0 for layers in nonfinite.values],
            lambda points: (
                f"gradients of up to {max(nonfinite.values[i] for i in points):.0f} layers are not finite"
            ),
        )
    if error is not None:
        # The first errors are those of untrained values; a median of a few of them says nothing.
        found += DIVERGENCE.find(
            error.steps,
            [
                index >= DIVERGENCE.points and not value <= BLOW_UP * median(error.values[:index])
                for index, value in enumerate(error.values)
            ],
            lambda points: f"the TD error rose to {max(error.values[point] for point in points):.2g}",
        )
    return found[:1] if skipped or nonfinite or error else None


CHURNING = Symptom(
    "churn",
    8,
    0.375,  # churn is 0 at some steps and high at others
    f"--gfs.temporal_clipping true, or {_SMALLER_RATE}",
    "section 2",
)
CHURN_LIMIT = 0.3
"""Share of states whose greedy action one step changes, or mean change of continuous actions."""


def churning_policy(scalars: Scalars) -> list[Finding] | None:
    """Find a policy that single optimizer steps turn around."""
    if (churn := CHURNING.series(scalars, CHURN)) is None:
        return None
    return CHURNING.find(
        churn.steps,
        [value >= CHURN_LIMIT for value in churn.values],
        lambda points: (
            f"one step changes the policy by {median(churn.values[point] for point in points):.2g}"
        ),
    )


TOO_HIGH_RATE = Symptom("learning rate too high", 8, 0.375, _SMALLER_RATE, _ABOUT_THE_REST)
KL_LIMIT = 0.05
"""KL divergence of PPO's policy from the one that acted; it is common to stop an update at 0.01 to 0.03."""
HEAD_CHURN_LIMIT = 0.15
"""Churn by one step of the last layer alone: no depth explains it."""


def too_high_rate(scalars: Scalars) -> list[Finding] | None:
    """Find steps that are too long: PPO moves far at once, or the last layer alone turns the policy."""
    found: list[Finding] = []
    kl, churn = (TOO_HIGH_RATE.series(scalars, tag) for tag in (KL, HEAD_CHURN))
    if kl is not None:
        found += TOO_HIGH_RATE.find(
            kl.steps,
            [value >= KL_LIMIT for value in kl.values],
            lambda points: (
                f"the KL divergence of an update is {median(kl.values[point] for point in points):.2g}"
            ),
        )
    if churn is not None:
        found += TOO_HIGH_RATE.find(
            churn.steps,
            [value >= HEAD_CHURN_LIMIT for value in churn.values],
            lambda points: (
                "one step of the last layer alone changes the policy by "
                f"{median(churn.values[point] for point in points):.2g}"
            ),
        )
    return found[:1] if kl or churn else None


APART = Symptom(
    "evaluation and training apart",
    3,
    1.0,
    "--model.init_args.eval_epsilon 0.05, which frees a greedy policy that is stuck",
    _ABOUT_THE_REST,
)
APART_LIMIT = 0.5
"""Distance of the returns of evaluation and training, as a share of the range of all returns of the run."""


def evaluation_apart(scalars: Scalars) -> list[Finding] | None:
    """Find evaluations that return far less than training does between them.

    While random actions become rarer, the two are not comparable. Evaluations that return more are expected:
    training has random actions, and its mean lags behind.
    """
    if (evaluation := APART.series(scalars, EVALUATION)) is None or TRAINING not in scalars:
        return None
    training, settled = scalars[TRAINING], _settled(scalars.get(EPSILON))
    steps, evaluated, trained = [], [], []
    for before, step, value in zip((-1, *evaluation.steps), *evaluation, strict=False):
        between = [other for at, other in zip(*training, strict=True) if before < at <= step]
        if between and before >= settled:
            steps.append(step)
            evaluated.append(value)
            trained.append(median(between))
    if len(steps) < APART.points:
        return None
    returns = [*evaluation.values, *training.values]
    distance = APART_LIMIT * (max(returns) - min(returns))

    def text(points: list[int]) -> str:
        ours, theirs = (median(values[point] for point in points) for values in (evaluated, trained))
        return f"evaluations return {ours:,.4g}, and training {theirs:,.4g}"

    holds = [theirs - ours >= distance > 0 for ours, theirs in zip(evaluated, trained, strict=True)]
    return APART.find(steps, holds, text)


def _settled(epsilon: Series | None) -> float:
    """Return the step from which on the share of random actions has its final value."""
    if epsilon is None:
        return -math.inf
    return next(
        step for step, value in zip(*epsilon, strict=True) if math.isclose(value, min(epsilon.values))
    )


LOST = Symptom("return lost", 5, 1.0, f"--gfs.temporal_clipping true, or {_SMALLER_RATE}", _ABOUT_THE_REST)
LOST_LIMIT = 0.75
"""Share of its improvement that a run has lost again."""
LEAST_GAIN = 0.1
"""Smallest improvement that can be lost, as a share of the return: a smaller one is noise."""


def lost_return(scalars: Scalars) -> list[Finding] | None:
    """Find evaluations that fell back to where they began; each is averaged with the two before it."""
    evaluation = LOST.series(scalars, EVALUATION)
    if evaluation is None or len(evaluation.steps) <= LOST.points:
        return None
    curve = smooth(evaluation.values)
    start, best = curve[0], list(accumulate(curve, max))
    return LOST.find(
        evaluation.steps,
        [_is_lost(start, top, value) for top, value in zip(best, curve, strict=True)],
        lambda points: (
            f"evaluations fell to {min(curve[point] for point in points):,.4g} "
            f"after {best[points[-1]]:,.4g}, in means of three"
        ),
    )


def _is_lost(start: float, best: float, value: float) -> bool:
    gain = best - start
    return gain > LEAST_GAIN * max(abs(best), abs(start)) and best - value >= LOST_LIMIT * gain
