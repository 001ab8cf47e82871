"""The task of a cell's process: a file in the cell's directory, so that any machine can run it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from lit_gfs.errors import UserError
from lit_gfs.study.planning.plan import Cell, Score
from lit_gfs.utils.atomic_files import replacing_text

TASK_NAME = "task.json"
FIT = "lit_gfs.study.cell.worker:fit"


class Task(NamedTuple):
    """The task of a cell's process.

    Attributes:
        cell: The planned run.
        command: All arguments of its ``fit``.
        directory: The cell's directory, as `lit_gfs.study.cell.attempts.prepare` left it.
        score: Names the scalars to collect.
        keep_checkpoints: Whether to keep its weights after its end.
        environment: Environment variables to set.
        working_directory: The study's working directory, which relative paths refer to.
        launcher: The name of the launcher.
        fit: The function that runs the fit, as in ``package.module:function``.
    """

    cell: Cell
    command: list[str]
    directory: Path
    score: Score
    keep_checkpoints: bool
    environment: Mapping[str, str]
    working_directory: Path
    launcher: str
    fit: str = FIT


def write_task(task: Task) -> None:
    """Write ``task.json`` into the cell's directory."""
    content = task._asdict() | {"cell": task.cell._asdict(), "score": asdict(task.score)}
    with replacing_text(task.directory / TASK_NAME) as file:
        json.dump(content, file, default=str)


def read_task(directory: Path) -> Task:
    """Read the ``task.json`` of a cell's directory.

    Raises:
        UserError: If it has none.
    """
    try:
        content: dict[str, Any] = json.loads((directory / TASK_NAME).read_text(encoding="utf-8"))
        content |= {"cell": Cell(**content["cell"]), "score": Score(**content["score"])}
        content |= {name: Path(content[name]) for name in ("directory", "working_directory")}
        return Task(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(directory)!r} has no {TASK_NAME} that can be read; expected the directory of a cell"
        ) from error


def imported(path: str) -> Callable[..., Any]:
    """Import a function from its path, as in ``package.module:function``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
