"""Cells that were run elsewhere: their results are taken from the tables of that study."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_gfs.errors import UserError
from lit_gfs.study.cell.planned import CELLS_DIRECTORY, check_unchanged, fit_command
from lit_gfs.study.origin import ORIGIN_NAME, Part, limited, part_of, read_origin
from lit_gfs.study.planning.plan import STUDY_NAME, Cell, Study
from lit_gfs.study.results.collect import Result, write_result
from lit_gfs.study.results.table import (
    CURVES_FILE,
    FAILED,
    FINISHED,
    GRADIENT_NORMS_FILE,
    MISSING,
    RUNS_FILE,
    Run,
    Table,
    read_table,
)

TABLES = (STUDY_NAME, ORIGIN_NAME, RUNS_FILE, CURVES_FILE, GRADIENT_NORMS_FILE)
"""The files that outlive the runs of a study: its results, and how they came about."""


class Elsewhere(NamedTuple):
    """Results from the tables of another directory, by cell, and the parts that ran them."""

    results: dict[str, Result]
    parts: list[Part]


def require_tables(name: str) -> Path:
    """Return a directory that has the tables of a study.

    Raises:
        UserError: If a file is missing.
    """
    for file in TABLES:
        if not os.path.isfile(os.path.join(name, file)):  # Path.is_file raises if a name is too long
            raise UserError(f"{name!r} has no {file}; expected the directory of a study that ran")
    return Path(name)


def read_elsewhere(study: Study, name: str, threads: int) -> Elsewhere:
    """Read the results that the tables of a directory have for the cells of a study.

    As in `read_results`, a failed cell with other arguments is left out, because it is a different cell now.

    Args:
        study: The plan.
        name: The directory. Its ``study.yaml`` gives the arguments that its cells had.
        threads: Number of threads of a cell; results depend on it.

    Raises:
        UserError: If a file is missing or has another format, or if the arguments of a finished cell differ
            from those of the plan.
    """
    directory = require_tables(name)
    table, parts = read_table(directory), read_origin(directory)
    before = {cell.name: cell for cell in Study.load(directory / STUDY_NAME).cells()}
    runs = {run.cell: run for run in table.runs if run.status != MISSING}
    results = {}
    for cell in study.cells():
        if cell.name not in runs:
            continue
        if cell.name not in before or (part := part_of(parts, cell.name)) is None:
            raise UserError(f"{name!r} does not say how cell {cell.name!r} was run")
        result = _result(before[cell.name], runs[cell.name], table, directory, part.threads)
        if result.status == FINISHED:
            check_unchanged(cell, result, study.score, threads, f"leave {name!r} out")
        elif result.arguments != cell.arguments or part.threads != threads:
            continue
        results[cell.name] = result
    return Elsewhere(results, limited(parts, results))


def needed(results: Mapping[str, Result], found: Sequence[Elsewhere]) -> list[Elsewhere]:
    """Limit results from elsewhere to those that a study lacks.

    A result of the study's own directory goes before one from elsewhere, an earlier directory before a later
    one, and a finished cell before a failed one.

    Args:
        results: Results of the study's own directory, by cell.
        found: Results of other directories.
    """
    best = dict(results)
    for name, result in (item for each in found for item in each.results.items()):
        if name not in best or (best[name].status, result.status) == (FAILED, FINISHED):
            best[name] = result
    chosen = []
    for each in found:
        used = {name: result for name, result in each.results.items() if best[name] is result}
        chosen.append(Elsewhere(used, limited(each.parts, used)))
    return chosen


def take_over(directory: Path, results: Mapping[str, Result]) -> None:
    """Keep results from elsewhere in a study's directory, as if their cells had run there."""
    for name, result in results.items():
        place = directory / CELLS_DIRECTORY / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        write_result(place, result)


def _result(cell: Cell, run: Run, table: Table, directory: Path, threads: int) -> Result:
    return Result(
        cell=cell.name,
        arguments=cell.arguments,
        command=fit_command(cell, directory, threads),
        status=run.status,
        error=run.error,
        env_id=run.env_id,
        steps=run.steps,
        parameters=run.parameters,
        wall_seconds=run.wall_seconds,
        cpu_seconds=run.cpu_seconds,
        curves={tag: curve for (name, tag), curve in table.curves.items() if name == cell.name},
        gradient_norms=table.gradient_norms.get(cell.name),
    )
