"""A cell's process as the child of a worker, on any machine.

This module imports only the standard library: a worker of a cluster loads it before anything else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

LOG_NAME = "log.txt"
HIDDEN = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "JSM_")
"""Beginnings of variables by which a cell would take itself for its job, or for one process of several."""


class MissingDirectory(Exception):
    """This machine does not see the directory of a cell."""


class End(NamedTuple):
    """The end of a cell's process.

    Attributes:
        status: Its exit status, negative for a signal.
        said: The last line that it wrote to its standard output, such as the message of a storage fault.
    """

    status: int
    said: str


def start_cell(
    directory: str, working_directory: str, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start the process of a cell, ``python -m lit_gfs.study.cell``.

    The process ends when this one ends, in any way, because its standard input is then closed.

    Args:
        directory: The cell's directory, an absolute path.
        working_directory: The directory that the cell's relative paths refer to.
        environment: Environment variables to set, besides those of this process that are not `HIDDEN`.

    Raises:
        MissingDirectory: If one of the directories is not on this machine.
    """
    for each in (directory, working_directory):
        if not Path(each).is_dir():
            raise MissingDirectory(each)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
    # Its own log opens late: this one also tells of a package that is missing.
    with Path(directory, LOG_NAME).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lit_gfs.study.cell", directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=working_directory,
            env={**kept, **environment},
        )


def end_of(process: subprocess.Popen[bytes]) -> End:
    """Wait for the end of a cell's process."""
    status = process.wait()
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)  # a process of its own may still have it open
    lines = (process.stdout.read() or b"").decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return End(status, said)


def kill_cell(process: subprocess.Popen[bytes]) -> None:
    """Kill a cell's process, if it is still alive."""
    if process.poll() is None:
        process.kill()
        process.wait()


def run_cell(directory: str, working_directory: str, environment: dict[str, str]) -> tuple[int, str]:
    """Run the process of a cell to its end, or until this process is told to stop.

    Returns:
        Status and last line, as in `End`.
    """
    process = start_cell(directory, working_directory, environment)
    try:
        status, said = end_of(process)
        return status, said
    finally:
        kill_cell(process)
