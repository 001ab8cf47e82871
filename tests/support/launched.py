"""Studies of `study_fits` under any launcher, and what their tables say."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_gfs.study.cell.planned import read_results
from lit_gfs.study.driver import run_cells
from lit_gfs.study.launchers.launcher import Launcher
from lit_gfs.study.lease import read_lease
from lit_gfs.study.planning.plan import Study
from lit_gfs.study.results.collect import make_table
from support import study_fits
from support.study_record import Record

TESTS = str(Path(__file__).resolve().parent.parent)


def run(
    plan: Study,
    launcher: Launcher,
    jobs: int = 2,
    stop: threading.Event | None = None,
    fit: str = study_fits.FIT,
) -> Record:
    """Run all cells of a study in ``runs`` of the working directory."""
    record = Record()
    stop = stop or threading.Event()
    run_cells(plan.cells(), plan.score, Path("runs"), launcher, jobs, record, stop, fit=fit)
    return record


def table(plan: Study) -> list[dict[str, Any]]:
    """Return the rows of ``runs.csv``, without times."""
    rows = make_table(plan, read_results(plan, Path("runs"))).runs
    return [row._asdict() | {"wall_seconds": None, "cpu_seconds": None} for row in rows]


def visible_to_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes of any launcher import the tests' support."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (TESTS, os.environ.get("PYTHONPATH")))))


def in_background(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def file_of_a_cell(name: str, seconds: float = 120) -> Path:
    """Wait for a file that a cell writes, in the directory of any cell, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in Path("runs/cells").glob(f"*/{name}"):
            if path.read_text():
                return path
        time.sleep(0.05)
    raise TimeoutError(f"no cell has written {name}")


def kill_the_parent_of_a_cell() -> None:
    """Kill the process that started the cell whose fit waits for that."""
    os.kill(int(file_of_a_cell("parent").read_text()), signal.SIGKILL)


def kill_the_cell_that_waits() -> None:
    """Kill the cell whose fit waits for the end of its parent."""
    lease = read_lease(file_of_a_cell("parent").parent)
    assert lease is not None
    os.kill(lease.pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ends(pid: int, seconds: float = 10) -> bool:
    """Return whether a process ends soon."""
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)
