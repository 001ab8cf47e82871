"""A job of SLURM: the cells that share its GPU, side by side."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lit_gfs.study.launchers.child import End, end_of, kill_cell, start_cell
from lit_gfs.study.lease import remove_lease
from lit_gfs.study.results.collect import RESULT_NAME

PARTIAL = ".partial"
STOP_NAME = f"stop{PARTIAL}"
"""A file among the ends that ends the jobs of this machine; ``scancel`` ends those of SLURM."""
RESTARTS_VARIABLE = "SLURM_RESTART_COUNT"


class CellOfJob(NamedTuple):
    """A cell of a job: its name, its directory as an absolute path, and its environment variables."""

    name: str
    directory: str
    environment: dict[str, str]


class CellsJob:
    """Runs cells side by side, and writes a file with the end of each.

    A job that SLURM starts again runs only the cells that have not ended; those resume.

    Args:
        cells: The cells.
        working_directory: The directory that their relative paths refer to.
        ends: The directory of the files, one for each cell, under its name.
        is_restart: Whether the job has run before.
    """

    def __init__(
        self, cells: Sequence[CellOfJob], working_directory: str, ends: str, is_restart: bool = False
    ) -> None:
        self._cells = list(cells)
        self._working_directory = working_directory
        self._ends = Path(ends)
        self._is_restart = is_restart

    def __call__(self) -> None:
        """Run the cells."""
        is_restart = self._is_restart or os.environ.get(RESTARTS_VARIABLE, "0") != "0"
        with contextlib.ExitStack() as stack:
            running: list[tuple[str, subprocess.Popen[bytes]]] = []
            for cell in self._cells:
                if self._has_ended(cell) or self._has_to_stop():
                    continue
                if is_restart:  # the lease is that of this job's process before, which may be left
                    remove_lease(Path(cell.directory))
                process = start_cell(cell.directory, self._working_directory, cell.environment)
                stack.callback(kill_cell, process)
                running.append((cell.name, process))
            while running and not self._has_to_stop():
                _wait_a_moment_for([process for _, process in running])
                for name, process in running:
                    if process.poll() is not None:
                        self._write(name, end_of(process))
                running = [(name, process) for name, process in running if process.returncode is None]

    def checkpoint(self) -> object:
        """Return the job that SLURM queues again, shortly before the time limit or a preemption.

        This is the method that submitit calls, in the middle of `__call__`, which then ends with its cells.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(
            CellsJob(self._cells, self._working_directory, str(self._ends), is_restart=True)
        )

    def _has_ended(self, cell: CellOfJob) -> bool:
        """Return whether a cell has ended, also by another launcher while this job was in the queue."""
        if not (self._ends / cell.name).exists() and Path(cell.directory, RESULT_NAME).exists():
            self._write(cell.name, End(0, ""))
        return (self._ends / cell.name).exists()

    def _has_to_stop(self) -> bool:
        return (self._ends / STOP_NAME).exists()

    def _write(self, name: str, end: End) -> None:
        partial = self._ends / f"{name}{PARTIAL}"
        partial.write_text(json.dumps(end), encoding="utf-8")
        partial.replace(self._ends / name)


def read_ends(directory: Path) -> dict[str, End]:
    """Read the ends of cells that jobs have written, by cell."""
    with contextlib.suppress(OSError):  # nothing but a fresh look, on the file system of a network
        directory.chmod(directory.stat().st_mode)
    names = [name for name in os.listdir(directory) if not name.endswith(PARTIAL)]
    return {name: End(*json.loads((directory / name).read_text(encoding="utf-8"))) for name in names}


def _wait_a_moment_for(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    if all(process.poll() is None for process in processes):
        with contextlib.suppress(subprocess.TimeoutExpired):
            processes[0].wait(timeout=0.5)
