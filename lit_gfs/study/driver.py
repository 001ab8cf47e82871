"""Drives the cells of a study to their ends, with the processes of a launcher."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from lit_gfs.errors import StorageFault
from lit_gfs.study.cell.files import CellFiles, Files
from lit_gfs.study.cell.planned import fit_command
from lit_gfs.study.cell.task import FIT, Task
from lit_gfs.study.launchers.launcher import Ending, Launcher
from lit_gfs.study.launchers.options import RETRIES
from lit_gfs.study.lease import Lease, LeaseLost, Watch
from lit_gfs.study.planning.plan import Cell, Score
from lit_gfs.study.process_ends import name_of, signal_of
from lit_gfs.study.results.collect import Result
from lit_gfs.study.results.table import FINISHED
from lit_gfs.study.running import Steps

POLL_SECONDS = 0.5
"""Time between two looks at the request to stop."""
LEASE_READ_SECONDS = 2.0
"""Time between two readings of a cell's lease."""
LEASES_PER_SECOND = 50
"""Leases that are read at most in a second: a thousand cells must not keep a network file system busy."""
EXPIRED = "its lease expired"


class Observer(Protocol):
    """Follows the cells as they run."""

    def started(self, cell: Cell) -> None:
        """Handle the start of a cell's process, or its discovery."""

    def interrupted(self, cell: Cell, reason: str) -> None:
        """Handle the end of a process whose cell has to start again."""

    def ended(self, cell: Cell, result: Result) -> None:
        """Handle the end of a cell."""

    def refresh(self, steps: Mapping[str, Steps]) -> None:
        """Update the display; called every `POLL_SECONDS` or sooner, with the steps of running cells."""


def run_cells(
    cells: Sequence[Cell],
    score: Score,
    directory: Path,
    launcher: Launcher,
    jobs: int,
    observer: Observer,
    stop: threading.Event,
    threads: int = 1,
    fit: str = FIT,
    trusted: Sequence[str] = (),
    keep_checkpoints: bool = True,
    retries: int = RETRIES,
    is_lost: threading.Event | None = None,
) -> None:
    """Run cells, each in its own process; the others continue if one fails.

    Args:
        cells: The cells, in order. A killed cell resumes from its last checkpoint; otherwise the files of an
            earlier attempt are removed.
        score: Names the scalars to collect.
        directory: The study's directory.
        launcher: Starts the processes. It is stopped at the end.
        jobs: Number of parallel cells.
        observer: Follows every cell.
        stop: Ends the run early once it is set; unfinished cells are abandoned.
        threads: Number of threads of a cell. Results depend on it, because it changes the order of sums.
        fit: The function that runs a fit, as in ``package.module:function``.
        trusted: Packages whose classes configurations may name.
        keep_checkpoints: Whether to keep the weights of ended cells.
        retries: How often a cell is started again after a signal or its machine ended its process.
        is_lost: Set if another study has taken over the directory.

    Raises:
        StorageFault: If a cell's files cannot be written. Unfinished cells are abandoned.
        LeaseLost: If another study has taken over the directory.
    """
    files = CellFiles(directory)
    environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    tasks = [
        Task(
            cell=cell,
            command=fit_command(cell, directory, threads, trusted),
            directory=files.place(cell.name),
            score=score,
            keep_checkpoints=keep_checkpoints,
            environment=environment,
            working_directory=Path.cwd(),
            launcher=launcher.name,
            fit=fit,
        )
        for cell in cells
    ]
    Driver(tasks, launcher, jobs, observer, files, retries).run(stop, is_lost or threading.Event())


class Watched(NamedTuple):
    """A cell that another driver started, or whose process has left this driver's sight.

    Attributes:
        task: The task.
        watch: Tells whether its lease is alive.
        reason: What to say if it has ended without a result.
        fails: Whether it has failed in that case; otherwise, it starts again.
        counts: Whether that start counts as a retry.
    """

    task: Task
    watch: Watch
    reason: str
    fails: bool = False
    counts: bool = True


class Driver:
    """Drives tasks to their ends. The files of the cells decide what has ended; the driver keeps no secret.

    Args:
        tasks: The tasks, in order.
        launcher: Starts their processes.
        jobs: Number of parallel cells.
        observer: Follows every cell.
        files: The files of the cells.
        retries: How often a cell is started again after a signal or its machine ended its process.
        clock: Returns the time, in seconds.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        launcher: Launcher,
        jobs: int,
        observer: Observer,
        files: Files,
        retries: int = RETRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launcher = launcher
        self._jobs = jobs
        self._observer = observer
        self._files = files
        self._retries = retries
        self._clock = clock
        self._waiting = deque(tasks)
        self._running: dict[str, Task] = {}
        self._watched: dict[str, Watched] = {}
        self._dead: dict[str, Lease] = {}
        """Leases of processes that are known, or taken, to be dead, by cell."""
        self._interruptions: Counter[str] = Counter()
        self._steps: dict[str, Steps] = {}
        self._leases_due = clock()

    def run(self, stop: threading.Event, is_lost: threading.Event) -> None:
        """Drive all cells to their ends, or until ``stop`` is set.

        Args:
            stop: Ends the run early; unfinished cells are abandoned.
            is_lost: Set if another driver has taken over.

        Raises:
            StorageFault: If a cell's files cannot be written. Unfinished cells are abandoned.
            LeaseLost: If another driver has taken over.
        """
        try:
            self._adopt()
            while (self._waiting or self._running or self._watched) and not stop.is_set():
                if is_lost.is_set():
                    self._watched.clear()  # they are the other driver's
                    raise LeaseLost("another process has taken this study over, because this one stood still")
                self._start()
                for ending in self._launcher.wait(POLL_SECONDS):
                    self._handle(ending, stop)
                if self._clock() >= self._leases_due:
                    many = len(self._running) + len(self._watched)
                    self._leases_due = self._clock() + max(LEASE_READ_SECONDS, many / LEASES_PER_SECOND)
                    self._read_leases()
                self._observer.refresh(self._steps)
        finally:
            self._launcher.stop()
            for name in self._watched:
                self._files.revoke(name)
        left = [*self._running.values(), *(watched.task for watched in self._watched.values())]
        for task in left:
            if (result := self._files.result(task.cell.name)) is not None:  # it ended just before the stop
                self._observer.ended(task.cell, result)

    def _adopt(self) -> None:
        """Watch the cells that are at work for an earlier driver, instead of starting them."""
        for task in list(self._waiting):
            if self._is_at_work(task.cell.name):
                self._waiting.remove(task)
                self._observer.started(task.cell)
                self._watch(task, EXPIRED, counts=False)

    def _is_at_work(self, name: str) -> bool:
        """Return whether there may be a process at work on a cell that has to start."""
        lease, dead = self._files.lease(name), self._dead.get(name)
        if lease is None or lease.is_surely_dead():
            return False
        return dead is None or (dead.owner, dead.beat) != (lease.owner, lease.beat)

    def _start(self) -> None:
        """Start as many cells as there is room for, all at once."""
        batch = []
        while self._waiting and len(self._running) + len(self._watched) < self._jobs:
            task = self._waiting.popleft()
            name = task.cell.name
            self._observer.started(task.cell)
            if self._is_at_work(name):  # a process of an earlier driver has come out of a queue
                self._watch(task, EXPIRED, counts=False)
                continue
            if (result := self._late_result(task)) is not None:
                self._observer.ended(task.cell, result)
                continue
            self._files.prepare(task)
            self._running[name] = task
            batch.append(task)
        if batch:
            self._launcher.start(batch)

    def _late_result(self, task: Task) -> Result | None:
        """Return the result of a cell that has to start, if a process that was taken for dead wrote one.

        The result of a cell that had failed before this driver began is to be replaced.
        """
        result = self._files.result(task.cell.name)
        if result is None or result.arguments != task.cell.arguments:
            return None
        return result if result.status == FINISHED or task.cell.name in self._interruptions else None

    def _handle(self, ending: Ending, stop: threading.Event) -> None:
        task = self._running.pop(ending.cell)
        self._steps.pop(ending.cell, None)
        status = ending.status
        if (result := self._files.result(ending.cell)) is not None:
            self._observer.ended(task.cell, result)
        elif status == StorageFault.status:
            raise StorageFault(f"cell {task.cell.name!r}: {ending.detail or 'its disk failed'}")
        elif stop.is_set():
            pass  # a signal to all processes also ends the cells'; such a cell has not failed
        elif status is None:
            self._watch(task, f"lost with its machine{f' ({ending.detail})' if ending.detail else ''}")
        elif status == LeaseLost.status:
            self._watch(task, "another process had its lease", counts=False)
        elif status == 0:
            self._watch(task, "exited with status 0", fails=True)
        elif (number := signal_of(status)) is not None:
            self._interrupt(task, f"killed by {name_of(number)}")
        else:
            self._fail(task, f"exited with status {status}", can_resume=False)

    def _watch(self, task: Task, reason: str, fails: bool = False, counts: bool = True) -> None:
        self._watched[task.cell.name] = Watched(task, Watch(self._clock()), reason, fails, counts)
        self._leases_due = self._clock()

    def _read_leases(self) -> None:
        now = self._clock()
        self._steps = {}
        for name in [*self._running, *self._watched]:
            lease = self._files.lease(name)
            if lease is not None and lease.steps is not None:
                self._steps[name] = lease.steps
            if name in self._watched:
                self._look_after(self._watched[name], lease, now)

    def _look_after(self, watched: Watched, lease: Lease | None, now: float) -> None:
        task, name = watched.task, watched.task.cell.name
        is_alive = watched.watch.is_alive(lease, now)
        # Read after the lease: a process writes its result before it gives its lease back.
        result = self._files.result(name)
        if result is None and is_alive:
            return
        del self._watched[name]
        self._steps.pop(name, None)
        if result is not None:
            self._observer.ended(task.cell, result)
        elif watched.fails:
            self._fail(task, watched.reason, can_resume=False)
        else:
            self._interrupt(task, watched.reason, watched.counts)

    def _interrupt(self, task: Task, reason: str, counts: bool = True) -> None:
        """Start a cell again, or let it fail if that has been done often enough."""
        name = task.cell.name
        if (lease := self._files.lease(name)) is not None:
            self._dead[name] = lease
        self._interruptions[name] += counts
        times = self._interruptions[name]
        if times <= self._retries:
            # Last, when fewer cells compete for memory.
            self._waiting.append(task)
            self._observer.interrupted(task.cell, reason)
        else:
            self._fail(task, reason if times == 1 else f"{reason} {times} times", can_resume=True)

    def _fail(self, task: Task, error: str, can_resume: bool) -> None:
        self._observer.ended(task.cell, self._files.fail(task, error, can_resume))
