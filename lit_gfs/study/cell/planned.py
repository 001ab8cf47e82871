"""Planned cells on the disk: their commands, and the results that they already have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_gfs.configuration.config_trust import trust_options
from lit_gfs.errors import UserError
from lit_gfs.study.planning.factors import Where, matches
from lit_gfs.study.planning.plan import Cell, Score, Study
from lit_gfs.study.results.collect import Result, read_result
from lit_gfs.study.results.table import FAILED, FINISHED

CELLS_DIRECTORY = "cells"
DEFAULTS = ("--trainer.enable_progress_bar=false",)
"""Options of every ``fit``; the study's own options come after them."""


def fit_command(cell: Cell, directory: Path, threads: int, trusted: Sequence[str] = ()) -> list[str]:
    """Return all arguments of a cell's ``fit``.

    Args:
        cell: The cell.
        directory: The study's directory.
        threads: Number of threads.
        trusted: Packages whose classes configurations may name.
    """
    place = [f"--run.root={directory}", f"--run.name={CELLS_DIRECTORY}", f"--run.version={cell.name}"]
    return ["fit", *DEFAULTS, *cell.arguments, *place, f"--threads={threads}", *trust_options(trusted)]


def read_results(study: Study, directory: Path, threads: int = 1) -> dict[str, Result]:
    """Read the results of earlier runs of the study.

    A failed cell whose arguments have changed since is left out, because it is a different cell now.

    Args:
        study: The plan.
        directory: The study's directory.
        threads: Number of threads of a cell; results depend on it.

    Raises:
        UserError: If the arguments of a finished cell differ from those of the plan.
    """
    results = {}
    for cell in study.cells():
        place = directory / CELLS_DIRECTORY / cell.name
        result = read_result(place)
        if result is None or (result.status == FAILED and result.arguments != cell.arguments):
            continue
        if result.status == FINISHED:
            check_unchanged(
                cell, result, study.score, threads, f"give the study another name, or remove {place}"
            )
        results[cell.name] = result
    return results


def choose_cells(
    study: Study, results: dict[str, Result], only: Where | None = None, retry_failed: bool = False
) -> list[Cell]:
    """List the cells that still have to run.

    Args:
        study: The plan.
        results: Results of ended cells, by cell.
        only: Levels by factor, to which the choice is limited.
        retry_failed: Whether to run failed cells again.
    """
    done = {name for name, result in results.items() if result.status == FINISHED or not retry_failed}
    return [cell for cell in study.cells() if cell.name not in done and matches(cell.levels, only or {})]


def check_unchanged(cell: Cell, result: Result, score: Score, threads: int, remedy: str) -> None:
    """Check that a finished cell is that of the plan.

    Args:
        cell: The cell, as it is planned.
        result: Its result.
        score: Names the scalars that have to be among its curves.
        threads: Number of threads of a planned cell.
        remedy: Advice to the user, in case it is not.

    Raises:
        UserError: If its arguments differ from those of the plan, or a scalar was not collected.
    """
    before = result.arguments + [argument for argument in result.command if argument.startswith("--threads=")]
    now = [*cell.arguments, f"--threads={threads}"]
    if before != now:
        gone = [argument for argument in before if argument not in now]
        new = [argument for argument in now if argument not in before]
        change = f"{' '.join(gone) or 'nothing'} became {' '.join(new) or 'nothing'}"
        if not gone and not new:
            change = "the order of its options changed"
    elif missing := [tag for tag in (score.tag, score.curve_tag) if tag not in result.curves]:
        change = f"{missing[0]!r} was not collected"
    else:
        return
    raise UserError(f"cell {cell.name!r} was finished with other arguments: {change}; {remedy}")
