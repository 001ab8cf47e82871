"""Studies whose truth is known: exponential learning curves of given speed, height and fall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_gfs.metrics.scores import final_score, instability, normalized_score
from lit_gfs.study.planning.plan import Study, read_study
from lit_gfs.study.results.table import FAILED, FINISHED, MISSING, Curve, GradientNorms, Run, Table

TAG = "eval/episode_return"
FLOOR, REFERENCE = -500.0, -100.0
STEPS = list(range(1_000, 40_001, 1_000))
SECONDS_PER_STEP = 0.002

Truth = dict[tuple[str, str], tuple[float, float]]
"""Speed and height (normalized score in the end) by recipe and scale."""

TRUTH: Truth = {
    ("baseline", "base"): (1.0, 1.0),
    ("baseline", "large"): (1.0, 0.5),
    ("gfs", "large"): (1.8, 1.25),
}


def study(
    tasks: Sequence[str] = ("acrobot",),
    seeds: int = 5,
    recipes: Sequence[str] = ("baseline", "gfs"),
    scales: Sequence[str] = ("base", "large"),
    **changes: Any,
) -> Study:
    """Plan a study of tasks with the same floor and reference."""
    content = {
        "name": "synthetic",
        "description": "Curves of known shape.",
        "factors": {
            "task": {task: {"floor": FLOOR, "reference": REFERENCE} for task in tasks},
            "scale": {scale: {} for scale in scales},
            "recipe": {recipe: {} for recipe in recipes},
            "seed": list(range(seeds)),
        },
        "skip": [{"scale": scales[0], "recipe": list(recipes[1:])}] if len(recipes) > 1 else [],
        "compare": {"baseline": recipes[0], "base_scale": scales[0], "tuned_on": [tasks[0]]},
        **changes,
    }
    return read_study(content)


def table(plan: Study, truth: Truth, noise: float = 0.0, statuses: dict[str, str] | None = None) -> Table:
    """Run the cells of a study: curves rise as ``height * (1 - exp(-speed * step / 8,000))``.

    Args:
        plan: The study.
        truth: What its recipes do at its scales.
        noise: Standard deviation of the height between runs, as a share of it, and of evaluations.
        statuses: Status by cell, where it is not finished.
    """
    runs, curves, norms = [], {}, {}
    for index, cell in enumerate(plan.cells()):
        status = (statuses or {}).get(cell.name, FINISHED)
        if status != FINISHED:
            runs.append(
                Run(cell.name, cell.levels, status, "ValueError: exploded" if status == FAILED else "")
            )
            continue
        speed, height = truth[cell.levels["recipe"], cell.levels["scale"]]
        random = np.random.default_rng(index)
        height *= 1 + noise * random.normal()
        heights = [
            height * (1 - math.exp(-speed * step / 8_000)) + noise * height * 0.3 * random.normal()
            for step in STEPS
        ]
        scores = [FLOOR + (REFERENCE - FLOOR) * value for value in heights]
        final = final_score(STEPS, scores)
        lost = instability(scores)
        runs.append(
            Run(
                cell.name,
                cell.levels,
                MISSING if status == MISSING else FINISHED,
                steps=STEPS[-1],
                final_score=final,
                normalized_score=normalized_score(final, FLOOR, REFERENCE),
                instability=None if math.isnan(lost) else lost,
                parameters=1_000 if cell.levels["scale"] == "base" else 60_000,
                wall_seconds=STEPS[-1] * SECONDS_PER_STEP,
                cpu_seconds=1.5 * STEPS[-1] * SECONDS_PER_STEP,
            )
        )
        curves[cell.name, TAG] = Curve(STEPS, [step * SECONDS_PER_STEP for step in STEPS], scores)
        if cell.levels["seed"] == "0":
            norms[cell.name] = _norms(random)
    return Table(runs, curves, norms)


def _norms(random: np.random.Generator) -> GradientNorms:
    layers = ["encoder", *(f"trunk.{layer}" for layer in range(10)), "head"]
    raw = [(10.0 ** (random.normal(0, 0.3, 40) - layer / 4)).tolist() for layer in range(len(layers))]
    applied = [(10.0 ** random.normal(-1, 0.2, 40)).tolist() for _ in layers]
    return GradientNorms(layers, STEPS, raw, applied)
