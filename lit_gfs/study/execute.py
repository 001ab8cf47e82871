"""Runs the cells of a study, each in its own process, several at a time."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Protocol

from lit_gfs.configuration.config_trust import trust_options
from lit_gfs.errors import StorageFault, UserError
from lit_gfs.runs.storage_errors import is_storage_error
from lit_gfs.study.attempts import forget_attempts, prepare
from lit_gfs.study.collect import Result, read_result, write_result
from lit_gfs.study.factors import Where, matches
from lit_gfs.study.plan import Cell, Score, Study
from lit_gfs.study.running import SharedSteps, Steps, read_steps
from lit_gfs.study.table import FAILED, FINISHED
from lit_gfs.study.worker import LOG_NAME, Fit, Task, describe_exit, fit, work
from lit_gfs.utils.stop_signals import STOP_SIGNALS, unclaimed_signals

CELLS_DIRECTORY = "cells"
LOCK_NAME = ".lock"
DEFAULTS = ("--trainer.enable_progress_bar=false",)
"""Options of every ``fit``; the study's own options come after them."""

PRELOADED = ["lit_gfs.cli", "lit_gfs.study.worker", "matplotlib.backends.backend_agg"]
"""Imports of the fork server, which save each cell seconds of imports."""

POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0
"""Time for a worker to end by itself before it is killed."""


class Observer(Protocol):
    """Follows the cells as they run."""

    def started(self, cell: Cell) -> None:
        """Handle the start of a cell's process."""

    def ended(self, cell: Cell, result: Result) -> None:
        """Handle the end of a cell."""

    def refresh(self, steps: Mapping[str, Steps]) -> None:
        """Update the display; called every `POLL_SECONDS` or sooner, with the steps of running cells."""


def available_cores() -> int:
    """Count the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def run_cells(
    cells: Sequence[Cell],
    score: Score,
    directory: Path,
    jobs: int,
    observer: Observer,
    stop: threading.Event,
    threads: int = 1,
    run_fit: Fit = fit,
    trusted: Sequence[str] = (),
    keep_checkpoints: bool = True,
) -> None:
    """Run cells, each in its own process; the others continue if one fails.

    Args:
        cells: The cells, in order. A killed cell resumes from its last checkpoint; otherwise the files of an
            earlier attempt are removed.
        score: Names the scalars to collect.
        directory: The study's directory.
        jobs: Number of parallel cells.
        observer: Follows every cell.
        stop: Ends the run early once it is set; unfinished cells are abandoned.
        threads: Number of threads of a cell. Results depend on it, because it changes the order of sums.
        run_fit: Runs a fit, in the worker.
        trusted: Packages whose classes configurations may name.
        keep_checkpoints: Whether to keep the weights of ended cells.

    Raises:
        StorageFault: If a cell's files cannot be written. Unfinished cells are abandoned.
    """
    environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    waiting = deque(cells)
    running: dict[int, tuple[BaseProcess, Task, Connection, SharedSteps]] = {}
    # Python's tracker of shared resources, started with the fork server, warns of leaks of stopped workers.
    quiet = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning")))
    with _environment({**environment, "PYTHONWARNINGS": quiet}):
        context = _start_method()
        try:
            while (waiting or running) and not stop.is_set():
                while waiting and len(running) < jobs:
                    cell = waiting.popleft()
                    place = directory / CELLS_DIRECTORY / cell.name
                    command = fit_command(cell, directory, threads, trusted)
                    prepare(place, command)
                    task = Task(cell, command, place, score, keep_checkpoints, environment)
                    told, telling = context.Pipe(duplex=False)
                    shared = context.RawArray(ctypes.c_longlong, 2)
                    arguments = (task, run_fit, telling, shared)
                    worker = context.Process(target=work, args=arguments, name=cell.name)
                    worker.start()
                    telling.close()
                    running[worker.sentinel] = (worker, task, told, shared)
                    observer.started(cell)
                for sentinel in connection.wait(list(running), timeout=POLL_SECONDS):
                    process, task, told, _ = running.pop(sentinel)  # type: ignore[arg-type]
                    process.join()
                    _raise_storage_fault(task, told)
                    # A signal to all processes also ends workers; such a worker has not failed.
                    if (result := _result_of(process, task, stop)) is not None:
                        observer.ended(task.cell, result)
                far = {task.cell.name: read_steps(shared) for _, task, _, shared in running.values()}
                observer.refresh({name: steps for name, steps in far.items() if steps is not None})
        finally:
            _end([process for process, *_ in running.values()])
        for _, task, *_ in running.values():
            if (result := read_result(task.directory)) is not None:  # it ended just before the stop
                observer.ended(task.cell, result)


class StopRequest(threading.Event):
    """An event that a signal sets."""

    signal: int | None = None
    """The first signal."""

    def set_by(self, number: int, frame: FrameType | None) -> None:
        """Set the event and note the signal: a handler for `signal.signal`."""
        self.signal = self.signal or number
        self.set()


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[StopRequest]:
    """Turn Ctrl-C, SIGTERM and the like into an event, so that they do not interrupt a step half-way.

    Signals that the process ignores (``nohup``) or already handles are left alone.
    """
    stop = StopRequest()
    previous = unclaimed_signals()
    for number in previous:
        signal.signal(number, stop.set_by)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a directory, and lock it against other studies until this process ends, in any way.

    Raises:
        UserError: If another study holds the lock, or the directory cannot be written.
        StorageFault: If its file system has no locks.
        OSError: If the disk is full, or fails.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK_NAME).open("a")
    except OSError as error:
        if is_storage_error(error) and error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        raise UserError(
            f"{str(directory)!r} cannot be written ({error.strerror}); name another --root"
        ) from error
    with file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"a study is running in {str(directory)!r}; wait for it, or stop it") from None
        except OSError as error:
            raise StorageFault(
                f"{str(directory)!r} cannot be locked ({error.strerror}) to keep other studies out; "
                "name another --root"
            ) from error
        yield


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


def _result_of(process: BaseProcess, task: Task, stop: threading.Event) -> Result | None:
    result = read_result(task.directory)
    if result is None and not stop.is_set():
        error = describe_exit(process.exitcode, task.directory / LOG_NAME)
        result = Result(task.cell.name, task.cell.arguments, task.command, FAILED, error)
        write_result(task.directory, result)
        if process.exitcode is not None and process.exitcode >= 0:  # it was not killed
            forget_attempts(task.directory)
    return result


def _raise_storage_fault(task: Task, told: Connection) -> None:
    with told, contextlib.suppress(EOFError):
        if told.poll():
            raise StorageFault(f"cell {task.cell.name!r}: {told.recv()}")


def _start_method() -> ForkServerContext | SpawnContext:
    """Choose how workers start: where possible, as forks of a server that has imported everything."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # Ctrl-C reaches all processes of a terminal. The server and its forks inherit the ignored signals.
    numbers = [number for number in STOP_SIGNALS if number != signal.SIGTERM]
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return context


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
