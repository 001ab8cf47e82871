"""The driver of a study, the real one, on a simulated cluster: its launcher, and the files of its cells."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from _simulated_cluster import Cluster, Process

from lit_gfs.study.cell.files import Files
from lit_gfs.study.cell.planned import CELLS_DIRECTORY
from lit_gfs.study.cell.task import Task
from lit_gfs.study.driver import Driver
from lit_gfs.study.launchers.launcher import Ending
from lit_gfs.study.lease import LEASE_SECONDS, RENEWAL_SECONDS, Lease
from lit_gfs.study.planning.plan import Cell, Score
from lit_gfs.study.results.collect import Result
from lit_gfs.study.results.table import FAILED
from lit_gfs.study.running import Steps


class DriverLost(BaseException):
    """The driver's process was killed: nothing of it runs any more, not even to clean up."""


class SimulatedLauncher:
    """A driver's hold on a cluster.

    Args:
        cluster: The cluster.
        name: The launcher's name.
        survives: Whether its processes live on if the driver is lost, and do not end with it.
    """

    def __init__(self, cluster: Cluster, name: str = "simulated", survives: bool = True) -> None:
        self.name = name
        self.cluster = cluster
        self.survives = survives
        self.is_lost = False
        self._endings: list[Ending] = []

    def hear(self, ending: Ending) -> None:
        """Take note of an end."""
        self._endings.append(ending)

    def lose_driver(self) -> None:
        """Kill the driver while it waits."""
        self.is_lost = True

    def start(self, tasks: Sequence[Task]) -> None:
        """Queue tasks."""
        for task in tasks:
            self.cluster.submit(Process(task, self))

    def wait(self, seconds: float) -> list[Ending]:
        """Let time pass until a task ends."""
        self.cluster.advance(self.cluster.now + seconds, lambda: bool(self._endings) or self.is_lost)
        if self.is_lost:
            if not self.survives:
                self.cluster.end_all(self)
            raise DriverLost
        endings, self._endings = self._endings, []
        return endings

    def stop(self) -> None:
        """End all tasks, unless the driver was killed."""
        if not self.is_lost:
            self.cluster.end_all(self)


class SimulatedFiles:
    """The shared disk of a cluster, as one driver sees it: see `lit_gfs.study.cell.files.Files`.

    Args:
        cluster: The cluster.
        launcher: The launcher of the same driver.
    """

    def __init__(self, cluster: Cluster, launcher: SimulatedLauncher) -> None:
        self._cluster = cluster
        self._launcher = launcher

    def place(self, cell: str) -> Path:
        """Return the directory of a cell."""
        return Path("cells", cell)

    def prepare(self, task: Task) -> None:
        """Remove the lease and the result of a cell."""
        process = self._cluster.take_away(task.cell.name)
        now = self._cluster.now
        if process is not None and process.has_been_still(now) < LEASE_SECONDS - RENEWAL_SECONDS:
            self._cluster.violations.append(f"{task.cell.name} starts although its process is alive")
        self._cluster.results.pop(task.cell.name, None)

    def result(self, cell: str) -> Result | None:
        """Return the result of a cell."""
        return self._cluster.results.get(cell)

    def lease(self, cell: str) -> Lease | None:
        """Return the lease of a cell, as its process has renewed it until now."""
        if cell not in self._cluster.leases:
            return None
        owner, process = self._cluster.leases[cell]
        now = self._cluster.now
        beat = process.beat(now) if process.frozen_beat is None else process.frozen_beat
        steps = Steps(int(process.work(now)), int(self._cluster.durations[cell]))
        return Lease(owner, f"machine {process.machine}", "far", 0, process.launcher.name, beat, *steps)

    def revoke(self, cell: str) -> None:
        """Remove the lease of a cell."""
        if not self._launcher.is_lost:
            self._cluster.take_away(cell)

    def fail(self, task: Task, error: str, can_resume: bool) -> Result:
        """Write the result of a cell whose process ended without one."""
        name = task.cell.name
        result = Result(name, task.cell.arguments, task.command, FAILED, error)
        self._cluster.results[name] = result
        return result


class Silent:
    """Follows cells, and counts how often each has ended."""

    def __init__(self) -> None:
        self.ended_cells: Counter[str] = Counter()

    def started(self, cell: Cell) -> None:
        """Ignore a start."""

    def interrupted(self, cell: Cell, reason: str) -> None:
        """Ignore an interruption."""

    def ended(self, cell: Cell, result: Result) -> None:
        """Count an end."""
        self.ended_cells[cell.name] += 1

    def refresh(self, steps: object) -> None:
        """Ignore the progress."""


def make_tasks(names: Sequence[str], directory: Path = Path("study")) -> list[Task]:
    """Make tasks for cells of these names."""
    return [
        Task(
            cell=Cell(name, {}, [f"--name={name}"]),
            command=["fit", f"--name={name}"],
            directory=directory / CELLS_DIRECTORY / name,
            score=Score(),
            keep_checkpoints=True,
            environment={},
            working_directory=Path.cwd(),
            launcher="simulated",
        )
        for name in names
    ]


def drive(
    cluster: Cluster,
    launcher: SimulatedLauncher,
    jobs: int,
    retries: int,
    lost_at: float | None = None,
    files: Files | None = None,
    directory: Path = Path("study"),
) -> bool:
    """Run a driver over the cells that have no result, as the command does.

    Args:
        cluster: The cluster.
        launcher: The driver's launcher.
        jobs: Number of parallel cells.
        retries: How often a cell is started again.
        lost_at: When the driver is killed; ``None``: never.
        files: The files of the cells; ``None``: those of the simulation.
        directory: The study's directory.

    Returns:
        Whether it came to its end.
    """
    if lost_at is not None:
        cluster.at(lost_at, launcher.lose_driver)
    tasks = make_tasks([name for name in cluster.durations if name not in cluster.results], directory)
    files = files or SimulatedFiles(cluster, launcher)
    driver = Driver(tasks, launcher, jobs, Silent(), files, retries, lambda: cluster.now)
    try:
        driver.run(threading.Event(), threading.Event())
    except DriverLost:
        return False
    return True
