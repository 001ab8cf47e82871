"""The launcher for Ray: a task for every cell, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from lit_gfs.errors import RunFault, UserError, in_one_line
from lit_gfs.study.cell.task import Task
from lit_gfs.study.launchers.child import MissingDirectory, run_cell
from lit_gfs.study.launchers.launcher import Ending
from lit_gfs.utils.ray_cluster import import_ray, keeping_signals

OBJECT_STORE_BYTES = 80_000_000
"""Nearly the least that Ray takes: cells exchange no objects."""
CONNECT_SECONDS = 5.0
GRACE_SECONDS = 10.0
"""Time for cancelled tasks to end."""
PASSED_ON = ("PYTHONPATH",)
"""Variables of the study that its cells get on every machine, if they are set."""


class ClusterLost(RunFault):
    """The cluster that runs the cells is gone."""


class RayLauncher:
    """Runs every cell as a task of Ray.

    The task starts the cell's process and waits for it. Ray repeats no task: the study does.

    Args:
        address: The cluster, as `ray.init` takes it: ``auto``, ``host:port``; ``None`` starts Ray on this
            machine, and ends it with the study.
        cpus: Number of cores of a cell.
        gpus: Number of GPUs of a cell; a share of one if it is below 1.
        jobs: Number of parallel cells, for Ray on this machine.

    Raises:
        UserError: If Ray is not installed, the cluster cannot be reached, or this machine lacks a GPU.
    """

    name = "ray"

    def __init__(self, address: str | None, cpus: float, gpus: float, jobs: int | None) -> None:
        self._ray = import_ray("--launcher ray")
        self._tasks: dict[Any, Task] = {}
        # Ray reports a lost worker in dozens of lines, on top of the study's display, and no option of it
        # ends that. The study tells of it in one line itself.
        self._ray._private.worker._worker_logs_enabled = False
        self._connect(address, None if jobs is None else math.ceil(jobs * cpus))
        try:
            self._require_gpus(address, gpus)
        except UserError:
            self.stop()
            raise
        self._remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_cell)

    def start(self, tasks: Sequence[Task]) -> None:
        """Hand tasks to Ray, which starts them when cores and GPUs are free."""
        passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        for task in tasks:
            place = task.working_directory.absolute()
            reference = self._remote.options(name=task.cell.name).remote(
                str(place / task.directory), str(place), {**passed_on, **task.environment}
            )
            self._tasks[reference] = task

    def wait(self, seconds: float) -> list[Ending]:
        """Wait until a task ends, at most so long.

        Raises:
            UserError: If a machine cannot run cells, because it lacks lit_gfs or the study's directory.
            ClusterLost: If the cluster does not answer any more.
        """
        waiting = list(self._tasks)
        if not waiting:
            time.sleep(seconds)
            return []
        try:
            ended, _ = self._ray.wait(waiting, timeout=seconds, fetch_local=False)
            if ended:  # others may have ended with it
                ended, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise ClusterLost(f"Ray's cluster was lost ({in_one_line(error)}); what ended is kept") from error
        return [self._ending(reference, self._tasks.pop(reference)) for reference in ended]

    def stop(self) -> None:
        """Cancel all tasks, and leave the cluster; end Ray if it runs on this machine for the study."""
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        if self._tasks:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=GRACE_SECONDS)
        self._tasks.clear()
        self._ray.shutdown()

    def _connect(self, address: str | None, cores: int | None) -> None:
        options: dict[str, Any] = {"address": address}
        if address is None:
            options = {
                "address": "local",
                "num_cpus": cores,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            }
        else:
            _require_server(address, self._resolved(address))
        try:
            with keeping_signals():
                self._ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        # Ray raises many kinds, by version and by fault.
        except Exception as error:
            reason = in_one_line(error).split(". ")[0].rstrip(".")
            if address is None:
                raise UserError(f"Ray did not start on this machine ({reason})") from error
            raise _unreachable(address, reason) from error

    def _resolved(self, address: str) -> str:
        """Return what a word such as auto stands for, which may be a cluster that is gone."""
        try:
            return self._ray._private.services.canonicalize_bootstrap_address(address) or address
        except Exception:  # `ray.init` says what is wrong
            return address

    def _require_gpus(self, address: str | None, gpus: float) -> None:
        there = self._ray.cluster_resources().get("GPU", 0)
        if gpus > there and address is None:
            raise UserError(f"--gpus is {gpus:g}, and Ray finds {there:g} GPUs on this machine")
        if gpus > there:
            print(f"Ray's cluster has {there:g} GPUs; cells wait until it has {gpus:g}", flush=True)

    def _ending(self, reference: Any, task: Task) -> Ending:
        errors = self._ray.exceptions
        name = task.cell.name
        try:
            return Ending(name, *self._ray.get(reference))
        except errors.RayTaskError as error:
            if isinstance(error.cause, MissingDirectory):
                raise UserError(
                    f"a machine of Ray's cluster does not see '{error.cause}'; expected a disk that all "
                    "machines share, as --root and as working directory"
                ) from error
            raise UserError(
                f"a machine of Ray's cluster cannot run cells ({in_one_line(error.cause)}); expected the "
                "same Python there as here, with lit_gfs"
            ) from error
        except errors.NodeDiedError:
            return Ending(name, None, "its machine was lost")
        except errors.OutOfMemoryError:
            return Ending(name, None, "Ray ended it, because its machine was short of memory")
        except errors.RayError as error:
            return Ending(name, None, f"its worker was lost ({type(error).__name__})")


def _require_server(address: str, resolved: str) -> None:
    """Check that something listens at an address: Ray itself would try for many minutes."""
    host, colon, port = resolved.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # such as auto; Ray knows which words it takes
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, in_one_line(error)) from error


def _unreachable(address: str, reason: str) -> UserError:
    return UserError(
        f"--address is {address!r}, and no Ray cluster answers there ({reason}); expected auto on a machine "
        "of the cluster, HOST:6379, or none to start Ray on this machine"
    )
