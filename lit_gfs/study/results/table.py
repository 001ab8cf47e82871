"""The tables of a study: the results of every cell, as plain CSV files.

A report is computed from these files alone, so it can be rebuilt without the runs.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lit_gfs.errors import UserError
from lit_gfs.utils.atomic_files import replacing_text

RUNS_FILE = "runs.csv"
CURVES_FILE = "curves.csv"
GRADIENT_NORMS_FILE = "gradient_norms.csv"

FINISHED = "finished"
FAILED = "failed"
MISSING = "missing"

_Number = TypeVar("_Number", int, float)


class Run(NamedTuple):
    """Result of one planned cell.

    Attributes:
        cell: The cell's name, unique in its study.
        levels: Name of the level by factor, in the order of the factors.
        status: ``finished``, ``failed`` or ``missing`` (not run yet).
        error: Why it failed, in one line; empty otherwise.
        steps: The last logged step.
        final_score: Mean score over the last share of the steps.
        normalized_score: The final score on the line from the task's floor (0) to its reference (1).
        instability: How far the run fell back from its best; unknown if it never rose above its start.
        parameters: Number of trained parameters.
        wall_seconds: Time of the fit, without imports, pauses and lost work.
        cpu_seconds: Processor time of the fit, over all threads and child processes; unknown for a resumed
            run.
        env_id: Its environment, if there is one; it gives an Atari game its normalization.
    """

    cell: str
    levels: dict[str, str]
    status: str
    error: str = ""
    steps: int | None = None
    final_score: float | None = None
    normalized_score: float | None = None
    instability: float | None = None
    parameters: int | None = None
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    env_id: str | None = None


class Curve(NamedTuple):
    """A logged scalar: steps, seconds since the fit began, and values; three lists of the same length."""

    steps: list[int]
    seconds: list[float]
    values: list[float]


class GradientNorms(NamedTuple):
    """Gradient norms of one run; ``raw`` before interventions, ``applied`` after; both ``[layer][time]``.

    A norm is NaN if no finite one was measured.
    """

    layers: list[str]
    steps: list[int]
    raw: list[list[float]]
    applied: list[list[float]]


class Table(NamedTuple):
    """The tables of a study: every planned run in order, curves by cell and tag, gradient norms by cell."""

    runs: list[Run]
    curves: dict[tuple[str, str], Curve]
    gradient_norms: dict[str, GradientNorms]


_MEASURES = Run._fields[2:]
_ADDED = ("cpu_seconds", "env_id")
"""Columns that tables of older versions do not have."""


def write_table(directory: Path, table: Table) -> None:
    """Write ``runs.csv``, ``curves.csv`` and ``gradient_norms.csv``.

    Args:
        directory: An existing directory; files of these names are replaced atomically.
        table: The tables; all runs have the same factors.
    """
    factors = list(table.runs[0].levels) if table.runs else []
    _write(
        directory / RUNS_FILE,
        ["cell", *factors, *_MEASURES],
        ([run.cell, *run.levels.values(), *run[2:]] for run in table.runs),
    )
    _write(
        directory / CURVES_FILE,
        ["cell", "tag", "step", "seconds", "value"],
        (
            [cell, tag, *point]
            for (cell, tag), curve in table.curves.items()
            for point in zip(*curve, strict=True)
        ),
    )
    _write(
        directory / GRADIENT_NORMS_FILE,
        ["cell", "layer", "step", "raw", "applied"],
        (
            [cell, layer, *point]
            for cell, norms in table.gradient_norms.items()
            for layer, raw, applied in zip(norms.layers, norms.raw, norms.applied, strict=True)
            for point in zip(norms.steps, raw, applied, strict=True)
        ),
    )


def read_table(directory: Path) -> Table:
    """Read the files of `write_table`.

    Raises:
        FileNotFoundError: If a file is missing.
        UserError: If a file does not have the format of `write_table`.
    """
    readers = (
        (RUNS_FILE, _read_runs),
        (CURVES_FILE, _read_curves),
        (GRADIENT_NORMS_FILE, _read_gradient_norms),
    )
    parts: list[Any] = []
    for name, read in readers:
        path = directory / name
        try:
            parts.append(read(path))
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            problem = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"'{path}' is no table of a study ({problem}); expected it as study wrote it"
            ) from error
    return Table(*parts)


def _read_runs(path: Path) -> list[Run]:
    runs = []
    for row in _rows(path, ("cell", *(name for name in _MEASURES if name not in _ADDED))):
        columns = list(row)
        factors = columns[1 : columns.index("status")]
        runs.append(
            Run(
                cell=row["cell"],
                levels={factor: row[factor] for factor in factors},
                status=row["status"],
                error=row["error"],
                steps=_number(row["steps"], int),
                final_score=_number(row["final_score"], float),
                normalized_score=_number(row["normalized_score"], float),
                instability=_number(row["instability"], float),
                parameters=_number(row["parameters"], int),
                wall_seconds=_number(row["wall_seconds"], float),
                cpu_seconds=_number(row.get("cpu_seconds", ""), float),
                env_id=row.get("env_id") or None,
            )
        )
    return runs


def _read_curves(path: Path) -> dict[tuple[str, str], Curve]:
    curves: dict[tuple[str, str], Curve] = {}
    for row in _rows(path, ("cell", "tag", "step", "seconds", "value")):
        curve = curves.setdefault((row["cell"], row["tag"]), Curve([], [], []))
        curve.steps.append(int(row["step"]))
        curve.seconds.append(float(row["seconds"]))
        curve.values.append(float(row["value"]))
    return curves


def _read_gradient_norms(path: Path) -> dict[str, GradientNorms]:
    norms: dict[str, GradientNorms] = {}
    for row in _rows(path, ("cell", "layer", "step", "raw", "applied")):
        cell = norms.setdefault(row["cell"], GradientNorms([], [], [], []))
        if row["layer"] not in cell.layers:
            cell.layers.append(row["layer"])
            cell.raw.append([])
            cell.applied.append([])
        if len(cell.layers) == 1:  # all layers have the same steps
            cell.steps.append(int(row["step"]))
        cell.raw[-1].append(float(row["raw"]))
        cell.applied[-1].append(float(row["applied"]))
    return norms


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with replacing_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _rows(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for column in columns:
            if column not in (reader.fieldnames or ()):
                raise KeyError(column)
        return list(reader)


def _number(text: str, kind: Callable[[str], _Number]) -> _Number | None:
    return kind(text) if text else None
