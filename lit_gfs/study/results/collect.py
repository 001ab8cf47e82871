"""Results of cells: the events of a cell become ``result.json``, and all results become the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.backend.event_processing.event_accumulator import ScalarEvent

from lit_gfs.errors import UserError, nearest
from lit_gfs.metrics.scores import final_score, human_normalized_score, instability, normalized_score
from lit_gfs.runs.logged_scalars import logged_scalars
from lit_gfs.study.planning.plan import Cell, Score, Study
from lit_gfs.study.results.table import FINISHED, MISSING, Curve, GradientNorms, Run, Table
from lit_gfs.utils.atomic_files import replacing_text

RESULT_NAME = "result.json"
MAX_BINS = 40
"""Maximum number of points in time of a cell's gradient norms."""

_RAW = "gradient_flow/norm/"
_APPLIED = "gradient_flow/norm_applied/"


class Events(NamedTuple):
    """Logged data of a run: last step, requested curves by tag, and gradient norms if there are any."""

    steps: int
    curves: dict[str, Curve]
    gradient_norms: GradientNorms | None


class Result(NamedTuple):
    """Result of a cell.

    Attributes:
        cell: The cell's name.
        arguments: The arguments of ``fit`` from the cell's levels.
        command: All arguments of its ``fit``, including its directory.
        status: ``finished`` or ``failed``.
        error: Why it failed, in one line.
        env_id: Its environment, if there is one.
        steps: The last logged step.
        parameters: Number of trained parameters.
        wall_seconds: Time of the fit.
        cpu_seconds: Processor time of the fit, if it ran in one piece.
        curves: Logged scalars by tag.
        gradient_norms: By layer, if they were monitored.
    """

    cell: str
    arguments: list[str]
    command: list[str]
    status: str
    error: str = ""
    env_id: str | None = None
    steps: int | None = None
    parameters: int | None = None
    wall_seconds: float | None = None
    curves: Mapping[str, Curve] = {}
    gradient_norms: GradientNorms | None = None
    cpu_seconds: float | None = None


def read_events(directory: Path, score: Score, started_at: float) -> Events:
    """Read the TensorBoard events of a run.

    Args:
        directory: The run's directory.
        score: Names the scalars to keep.
        started_at: Start of the fit, in seconds since the epoch.

    Raises:
        UserError: If a scalar was not logged, or the final score is not finite.
    """
    logged = logged_scalars(directory)
    curves = {}
    for tag in dict.fromkeys((score.tag, score.curve_tag)):
        if tag not in logged:
            raise UserError(f"no score: {tag!r} was never logged{nearest(tag, logged)}")
        points = logged[tag]
        curves[tag] = Curve(
            [point.step for point in points],
            [round(point.wall_time - started_at, 3) for point in points],
            [point.value for point in points],
        )
    final = final_score(curves[score.tag].steps, curves[score.tag].values, score.final_share)
    if not math.isfinite(final):
        raise UserError(f"no score: the final {score.tag!r} is {final}")
    last_step = max(points[-1].step for points in logged.values())
    return Events(last_step, curves, _gradient_norms(logged))


def _gradient_norms(logged: Mapping[str, Sequence[ScalarEvent]]) -> GradientNorms | None:
    layers = [tag.removeprefix(_RAW) for tag in logged if tag.startswith(_RAW)]
    if not layers:
        return None

    def norms(prefix: str) -> dict[str, dict[int, float]]:
        present = [layer for layer in layers if prefix + layer in logged]
        return {layer: {point.step: point.value for point in logged[prefix + layer]} for layer in present}

    return bin_gradient_norms(layers, norms(_RAW), norms(_APPLIED))


def bin_gradient_norms(
    layers: Sequence[str],
    raw: Mapping[str, Mapping[int, float]],
    applied: Mapping[str, Mapping[int, float]],
    max_bins: int = MAX_BINS,
) -> GradientNorms:
    """Take geometric means of gradient norms over stretches of a run.

    Args:
        layers: The names of the layers, in order.
        raw: Norm by step by layer, before interventions.
        applied: The same, as the optimizer received it.
        max_bins: Maximum number of points in time; each covers the same number of measurements.

    Returns:
        Norms at the first step of every stretch. As in the heat map, a mean covers finite, non-zero norms. If
        there are none, it is NaN if a norm was not finite, and 0 if all were 0.
    """
    steps = sorted({step for norms in raw.values() for step in norms})
    size = max(1, math.ceil(len(steps) / max_bins))
    stretches = [steps[start : start + size] for start in range(0, len(steps), size)]

    def means(norms: Mapping[str, Mapping[int, float]]) -> list[list[float]]:
        return [
            [
                _geometric_mean([norms[layer][step] for step in stretch if step in norms.get(layer, {})])
                for stretch in stretches
            ]
            for layer in layers
        ]

    return GradientNorms(list(layers), [stretch[0] for stretch in stretches], means(raw), means(applied))


def _geometric_mean(norms: Sequence[float]) -> float:
    finite = [norm for norm in norms if math.isfinite(norm)]
    if usable := [norm for norm in finite if norm > 0]:
        mean = math.exp(math.fsum(map(math.log, usable)) / len(usable))
        return float(f"{mean:.5g}")  # no more digits than a table can use
    return 0.0 if finite and len(finite) == len(norms) else math.nan


def write_result(directory: Path, result: Result) -> None:
    """Write ``result.json`` atomically."""
    content = result._asdict()
    content["curves"] = {tag: curve._asdict() for tag, curve in result.curves.items()}
    if result.gradient_norms is not None:
        content["gradient_norms"] = result.gradient_norms._asdict()
    with replacing_text(directory / RESULT_NAME) as file:
        json.dump(content, file)


def read_result(directory: Path) -> Result | None:
    """Read a cell's ``result.json``; return ``None`` if the cell has not ended."""
    try:
        content: dict[str, Any] = json.loads((directory / RESULT_NAME).read_text(encoding="utf-8"))
        content["curves"] = {tag: Curve(**curve) for tag, curve in content["curves"].items()}
        if content["gradient_norms"] is not None:
            content["gradient_norms"] = GradientNorms(**content["gradient_norms"])
        return Result(**content)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_table(study: Study, results: Mapping[str, Result]) -> Table:
    """Make the tables of all planned cells.

    Args:
        study: The plan.
        results: Results so far, by cell.
    """
    cells = study.cells()
    ended = [(cell, results[cell.name]) for cell in cells if cell.name in results]
    first_seed = next(iter(study.factors["seed"]))
    return Table(
        runs=[make_run(study, cell, results.get(cell.name)) for cell in cells],
        curves={(cell.name, tag): curve for cell, result in ended for tag, curve in result.curves.items()},
        gradient_norms={
            cell.name: result.gradient_norms
            for cell, result in ended
            if cell.levels["seed"] == first_seed and result.gradient_norms is not None
        },
    )


def make_run(study: Study, cell: Cell, result: Result | None) -> Run:
    """Make a cell's row of ``runs.csv``, with the scores that the study defines now."""
    if result is None:
        return Run(cell.name, cell.levels, MISSING)
    if result.status != FINISHED:
        return Run(cell.name, cell.levels, result.status, result.error)
    scores = result.curves[study.score.tag]
    final = final_score(scores.steps, scores.values, study.score.final_share)
    task = study.factors["task"][cell.levels["task"]]
    if task.floor is not None and task.reference is not None:
        normalized: float | None = normalized_score(final, task.floor, task.reference)
    else:
        normalized = human_normalized_score(result.env_id or "", final)
    start = task.floor if study.score.curve_tag == study.score.tag else None
    unsteadiness = instability(result.curves[study.score.curve_tag].values, start)
    return Run(
        cell=cell.name,
        levels=cell.levels,
        status=FINISHED,
        steps=result.steps,
        final_score=final,
        normalized_score=normalized,
        instability=unsteadiness if math.isfinite(unsteadiness) else None,
        parameters=result.parameters,
        wall_seconds=result.wall_seconds,
        cpu_seconds=result.cpu_seconds,
        env_id=result.env_id,
    )
