"""The driver's view of the files of cells: it prepares, starts, watches and fails cells by them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from lit_gfs.study.cell.attempts import forget_attempts, prepare
from lit_gfs.study.cell.planned import CELLS_DIRECTORY
from lit_gfs.study.cell.task import Task, write_task
from lit_gfs.study.cell.worker import LOG_NAME, shorten
from lit_gfs.study.lease import Lease, read_lease, remove_lease
from lit_gfs.study.results.collect import Result, read_result, write_result
from lit_gfs.study.results.table import FAILED


class Files(Protocol):
    """The files of cells, in the cells' directories or, for simulations, elsewhere."""

    def place(self, cell: str) -> Path:
        """Return the directory of a cell."""

    def prepare(self, task: Task) -> None:
        """Make a cell ready to start: write its task, and remove its lease and its result."""

    def result(self, cell: str) -> Result | None:
        """Read the result of a cell, if there is one."""

    def lease(self, cell: str) -> Lease | None:
        """Read the lease of a cell, if there is one."""

    def revoke(self, cell: str) -> None:
        """Take the lease of a cell away, so that its process ends."""

    def fail(self, task: Task, error: str, can_resume: bool) -> Result:
        """Write the result of a cell whose process ended without one, and return it.

        Args:
            task: The task.
            error: How the process ended; the last line of the cell's log is added.
            can_resume: Whether another attempt may go on from its last checkpoint.
        """


class CellFiles:
    """The files of cells below a study's directory: see `Files`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / CELLS_DIRECTORY

    def place(self, cell: str) -> Path:
        """Return the directory of a cell."""
        return self._directory / cell

    def prepare(self, task: Task) -> None:
        """Make a cell ready to start: write its task, and remove its lease and its result."""
        remove_lease(task.directory)  # first: whoever has it must not write any more
        prepare(task.directory, task.command)
        write_task(task)

    def result(self, cell: str) -> Result | None:
        """Read the result of a cell, if there is one."""
        with suppress(OSError):
            os.listdir(self.place(cell))  # a network file system may not know of a new file before
        return read_result(self.place(cell))

    def lease(self, cell: str) -> Lease | None:
        """Read the lease of a cell, if there is one."""
        return read_lease(self.place(cell))

    def revoke(self, cell: str) -> None:
        """Take the lease of a cell away, so that its process ends."""
        remove_lease(self.place(cell))

    def fail(self, task: Task, error: str, can_resume: bool) -> Result:
        """Write the result of a cell whose process ended without one, and return it."""
        last = _last_line(task.directory / LOG_NAME)
        error = shorten(f"{error}: {last}" if last else error)
        result = Result(task.cell.name, task.cell.arguments, task.command, FAILED, error)
        write_result(task.directory, result)
        if not can_resume:
            forget_attempts(task.directory)
        return result


def _last_line(path: Path) -> str:
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")
