"""Cells whose driver was lost: another driver waits for those that live, and starts the others again."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lit_gfs.study.cell.files import CellFiles
from lit_gfs.study.cell.task import Task
from lit_gfs.study.driver import Driver
from lit_gfs.study.launchers.launcher import Ending, Launcher
from lit_gfs.study.launchers.local import LocalLauncher
from lit_gfs.study.lease import LeaseLost, read_lease
from lit_gfs.study.planning.plan import Cell
from lit_gfs.study.results.collect import read_result
from lit_gfs.study.results.table import FINISHED
from support.processes import killed_while, wait_for
from support.study_fits import make_task, study
from support.study_record import Record

QUICK_LEASE_SECONDS = 2.0
FSYNC, REPLACE = os.fsync, Path.replace


@pytest.fixture
def cell() -> Cell:
    return study("wait").cells()[0]


class Started:
    """A process of a cell that another driver started."""

    def __init__(self, task: Task) -> None:
        CellFiles(task.directory.parent.parent).prepare(task)
        self.launcher = LocalLauncher()
        self.launcher.start([task])
        wait_for(task.directory / "pid")
        self.pid = int((task.directory / "pid").read_text())

    def status(self) -> int | None:
        """Wait for its end, and return its exit status."""
        deadline = time.monotonic() + 60
        while not (endings := self.launcher.wait(1)):
            assert time.monotonic() < deadline
        return endings[0].status


class Nothing:
    """A launcher that must not start anything."""

    name = "nothing"

    def start(self, tasks: Sequence[Task]) -> None:
        raise AssertionError([task.cell.name for task in tasks])

    def wait(self, seconds: float) -> list[Ending]:
        time.sleep(0.05)
        return []

    def stop(self) -> None:
        pass


def drive(
    tasks: Sequence[Task],
    launcher: Launcher,
    record: Record,
    stop: threading.Event | None = None,
    is_lost: threading.Event | None = None,
    jobs: int = 2,
) -> None:
    """Drive cells to their ends without a retry."""
    files = CellFiles(tasks[0].directory.parent.parent)
    Driver(tasks, launcher, jobs, record, files, 0).run(
        stop or threading.Event(), is_lost or threading.Event()
    )


def test_a_living_cell_is_waited_for(cell: Cell, tmp_path: Path) -> None:
    task = make_task(cell, tmp_path)
    other = Started(task)

    class LetsGo(Record):
        def refresh(self, steps: object) -> None:
            super().refresh(steps)
            (task.directory.parent / "go").touch()

    record = LetsGo()
    drive([task], Nothing(), record)

    assert record.results["wait"].status == FINISHED
    assert other.status() == 0
    assert record.steps.keys() == {cell.name}


def test_a_stop_takes_the_leases_of_all_cells_that_another_driver_started(tmp_path: Path) -> None:
    tasks = [make_task(cell, tmp_path) for cell in study("wait", seeds=2).cells()]
    others = [Started(task) for task in tasks]
    stop = threading.Event()

    class Stops(Record):
        def refresh(self, steps: object) -> None:
            stop.set()

    record = Stops()
    drive(tasks, Nothing(), record, stop, jobs=1)  # they run already, so they are not one at a time

    assert record.most_at_once == 2
    assert [other.status() for other in others] == [LeaseLost.status] * 2
    assert record.results == {}
    assert [read_result(task.directory) for task in tasks] == [None, None]


def test_a_driver_that_was_replaced_leaves_the_cells_to_the_other(cell: Cell, tmp_path: Path) -> None:
    task = make_task(cell, tmp_path)
    other = Started(task)
    is_lost = threading.Event()
    is_lost.set()

    with pytest.raises(LeaseLost):
        drive([task], Nothing(), Record(), is_lost=is_lost)

    (task.directory.parent / "go").touch()
    assert other.status() == 0


def test_a_cell_that_stands_still_is_started_again_and_wakes_up_to_nothing(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_gfs.study.lease.LEASE_SECONDS", QUICK_LEASE_SECONDS)
    monkeypatch.setattr("lit_gfs.study.driver.LEASE_READ_SECONDS", 0.2)
    task = make_task(cell, tmp_path)
    other = Started(task)
    os.kill(other.pid, signal.SIGSTOP)
    (task.directory.parent / "go").touch()  # it would end at once

    record = Record()
    Driver([task], LocalLauncher(), 1, record, CellFiles(tmp_path), 0).run(
        threading.Event(), threading.Event()
    )
    written = (task.directory / "result.json").stat().st_mtime_ns
    os.kill(other.pid, signal.SIGCONT)

    assert other.status() == LeaseLost.status
    assert record.interruptions == [("wait", "its lease expired")]
    assert record.results["wait"].status == FINISHED
    assert (task.directory / "result.json").stat().st_mtime_ns == written


def test_a_killed_cell_of_another_driver_is_started_again_at_once(cell: Cell, tmp_path: Path) -> None:
    task = make_task(cell, tmp_path)
    other = Started(task)
    os.kill(other.pid, signal.SIGKILL)
    other.status()
    assert read_lease(task.directory) is not None
    (task.directory.parent / "go").touch()

    record = Record()
    begun = time.monotonic()
    Driver([task], LocalLauncher(), 1, record, CellFiles(tmp_path), 0).run(
        threading.Event(), threading.Event()
    )

    assert record.results["wait"].status == FINISHED
    assert record.interruptions == []
    assert time.monotonic() - begun < 30  # and not when its lease has expired


def test_a_second_process_of_a_cell_leaves_it_to_the_first(cell: Cell, tmp_path: Path) -> None:
    task = make_task(cell, tmp_path)
    first = Started(task)
    second = LocalLauncher()

    second.start([task])
    endings = []
    while not endings:
        endings = second.wait(1)
    assert endings == [Ending(cell.name, LeaseLost.status)]

    (task.directory.parent / "go").touch()
    assert first.status() == 0
    written = (task.directory / "result.json").stat().st_mtime_ns
    second.start([task])  # one that waited in a queue
    endings = []
    while not endings:
        endings = second.wait(1)
    assert endings == [Ending(cell.name, 0)]
    assert (task.directory / "result.json").stat().st_mtime_ns == written


class ForkLauncher:
    """Runs cells as forks, which live on if the driver is killed, as jobs of a cluster do."""

    name = "fork"

    def __init__(self) -> None:
        self._children: dict[int, str] = {}

    def start(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            child = os.fork()
            if child == 0:
                # The driver may be one that kills itself at a moment; its cells do not.
                os.fsync, Path.replace = FSYNC, REPLACE  # type: ignore[method-assign]
                with contextlib.suppress(BaseException):
                    from lit_gfs.study.cell.worker import work

                    os._exit(work(task, print))
                os._exit(1)
            self._children[child] = task.cell.name

    def wait(self, seconds: float) -> list[Ending]:
        time.sleep(0.02)
        endings = []
        for child, name in list(self._children.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                del self._children[child]
                endings.append(Ending(name, os.waitstatus_to_exitcode(status)))
        return endings

    def stop(self) -> None:
        for child in self._children:
            os.kill(child, signal.SIGKILL)


def test_a_driver_that_is_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    cells = study("well", "abrupt exit", "bug").cells()

    def drive_left(directory: Path) -> None:
        tasks = [make_task(cell, directory) for cell in cells]
        drive([task for task in tasks if read_result(task.directory) is None], ForkLauncher(), Record())

    # Three tasks are written and one failure, each with a write to the disk and a renaming.
    for moment in range(1, 9):
        directory = tmp_path / str(moment)
        assert killed_while(lambda directory=directory: drive_left(directory), moment) == signal.SIGKILL
        drive_left(directory)
        results = [read_result(directory / "cells" / cell.name) for cell in cells]
        assert [result and result.status for result in results] == [FINISHED, "failed", "failed"]


def test_a_cell_that_is_killed_at_any_moment_ends_with_one_result(tmp_path: Path) -> None:
    (cell,) = study("well").cells()

    def work_on(task: Task) -> None:
        from lit_gfs.study.cell.worker import work

        assert work(task, print) == 0

    moment, was_killed = 1, True
    while was_killed:
        task = make_task(cell, tmp_path / str(moment))
        CellFiles(tmp_path / str(moment)).prepare(task)
        was_killed = killed_while(lambda task=task: work_on(task), moment) == signal.SIGKILL
        if was_killed:
            record = Record()
            drive([task], ForkLauncher(), record)
        result = read_result(task.directory)
        assert result is not None
        assert (result.status, result.curves["eval/episode_return"].values) == (FINISHED, [0.0, 0.0])
        assert read_lease(task.directory) is None
        moment += 1
    assert moment > 4
