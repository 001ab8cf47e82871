"""The launcher of this machine: child processes of the study."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from lit_gfs.study.cell.__main__ import run_as_child
from lit_gfs.study.cell.task import Task
from lit_gfs.study.launchers.gpu_shares import GpuShares
from lit_gfs.study.launchers.launcher import Ending
from lit_gfs.utils.stop_signals import STOP_SIGNALS

PRELOADED = [
    *("lit_gfs.cli", "lit_gfs.study.cell.worker", "matplotlib.backends.backend_agg"),
    "lit_gfs.utils.frozen_imports",  # after all others
]
"""Imports of the fork server, which save each cell seconds of imports."""
GRACE_SECONDS = 5.0
"""Time for a process to end by itself before it is killed."""
SERVER_DIED = 255
"""The exit status of a child whose fork server died: the child itself may be alive."""


class _Child(NamedTuple):
    """A running cell: its name, its process, and the end of a pipe that tells a fault of the storage."""

    cell: str
    process: BaseProcess
    faults: Connection


class LocalLauncher:
    """Runs cells as child processes, which end with this one: see `lit_gfs.study.launchers.launcher`.

    Args:
        gpus: Gives each cell a device; without, every cell sees all devices.
    """

    name = "local"

    def __init__(self, gpus: GpuShares | None = None) -> None:
        self._gpus = gpus
        self._children: dict[int, _Child] = {}

    def start(self, tasks: Sequence[Task]) -> None:
        """Start the processes of cells."""
        for task in tasks:
            with _environment(_variables(task)):
                context = _start_method()
                faults, telling = context.Pipe(duplex=False)
                shown = self._gpus.take(task.cell.name) if self._gpus else {}
                arguments = (task.directory.absolute(), shown, telling)
                process = context.Process(target=run_as_child, args=arguments, name=task.cell.name)
                process.start()
                telling.close()
            self._children[process.sentinel] = _Child(task.cell.name, process, faults)

    def wait(self, seconds: float) -> list[Ending]:
        """Wait until a cell ends, at most so long."""
        return [
            self._ending(self._children.pop(sentinel))  # type: ignore[arg-type]
            for sentinel in connection.wait(list(self._children), timeout=seconds)
        ]

    def stop(self) -> None:
        """End all cells."""
        children = list(self._children.values())
        self._children.clear()
        for child in children:
            child.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for child in children:
            child.process.join(max(0.0, deadline - time.monotonic()))
            if child.process.is_alive():
                child.process.kill()
                child.process.join()
            child.faults.close()

    def _ending(self, child: _Child) -> Ending:
        child.process.join()
        if self._gpus:
            self._gpus.give_back(child.cell)
        detail = ""
        with child.faults, contextlib.suppress(EOFError):
            if child.faults.poll():
                detail = child.faults.recv()
        if child.process.exitcode == SERVER_DIED:
            return Ending(child.cell, None, "its fork server died")
        return Ending(child.cell, child.process.exitcode, detail)


def _variables(task: Task) -> dict[str, str]:
    """Return the environment in which a process starts, and with it the fork server."""
    # Python's tracker of shared resources, started with the fork server, warns of leaks of stopped workers.
    quiet = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning")))
    return {**task.environment, "PYTHONWARNINGS": quiet}


def _start_method() -> ForkServerContext | SpawnContext:
    """Choose how processes start: where possible, as forks of a server that has imported everything."""
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
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
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
