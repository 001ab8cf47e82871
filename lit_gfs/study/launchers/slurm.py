"""The launcher for SLURM, by submitit: an array of jobs, each with one cell, or those that share its GPU."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_gfs.errors import UserError, nearest, shown
from lit_gfs.study.cell.task import Task
from lit_gfs.study.launchers.job import STOP_NAME, CellOfJob, CellsJob, read_ends
from lit_gfs.study.launchers.launcher import Ending

FOLDER_NAME = "slurm"
ENDS_NAME = "ends"
ARRAYS_NAME = "submitted.txt"
CLUSTERS = ("slurm", "local")
MAX_ARRAY = 1000
"""Jobs of one array; SLURM's own limit, MaxArraySize, is 1001 unless a site has changed it."""
MAX_REQUEUES = 100
"""How often a job may reach its time limit: a cell resumes, so it makes progress each time."""
POLL_SECONDS = 0.5
SECONDS_BETWEEN_QUERIES = 30.0
"""Time between two questions about a job that has said nothing; submitit's own grows to ten minutes."""
SECONDS_UNTIL_VISIBLE = 20.0
"""Time for a file of another machine to appear here."""
GRACE_SECONDS = 10.0
"""Time for jobs of this machine to end."""
LOCAL_MINUTES = 7 * 24 * 60

OURS = {
    "array_parallelism": "--jobs",
    "cpus_per_gpu": "--threads",
    "cpus_per_task": "--threads",
    "gpus_per_node": "--gpus",
    "gpus_per_task": "--gpus",
    "nodes": "",
    "ntasks_per_node": "",
    "num_gpus": "--gpus",
}
"""Parameters that the study sets itself, with the option of the study that decides them."""

KINDS: tuple[tuple[str, type, str], ...] = (
    ("additional_parameters", dict, "options of sbatch by name, as in '{reservation: mine}'"),
    ("setup", list, "a list of shell commands, as in '[module load cuda]'"),
    ("srun_args", list, "a list of options of srun, as in '[--mpi=none]'"),
)


class _Submitted(NamedTuple):
    """A job, those of its cells that have not ended, and where it writes their ends."""

    job: Any
    cells: set[str]
    ends: Path


class SlurmLauncher:
    """Runs cells as arrays of SLURM's jobs.

    The jobs outlive this process: the next one finds those that run by their leases, and takes those that
    wait out of the queue.

    Args:
        directory: The study's directory, on a disk that all machines share. Logs are in its ``slurm``.
        options: Parameters of ``sbatch`` as submitit names them, such as ``partition`` and ``time``
            (minutes); ``requeues``, how often a job may reach its time limit; and ``cluster``, where
            ``local`` runs the jobs as processes of this machine.
        cpus: Number of cores of a cell.
        gpus: Number of GPUs of a cell; a share of one if it is below 1. Cells that share a GPU are one job.
        jobs: Number of parallel cells; ``None`` leaves that to SLURM.

    Raises:
        UserError: If submitit or SLURM is missing, or an option is invalid.
    """

    name = "slurm"

    def __init__(
        self, directory: Path, options: Mapping[str, Any], cpus: float, gpus: float, jobs: int | None
    ) -> None:
        check_slurm(options)
        self._submitit = import_submitit()
        options = dict(options)
        self._cluster = options.pop("cluster", CLUSTERS[0])
        requeues = options.pop("requeues", MAX_REQUEUES)
        # Rounding errors must not cost a cell: three cells of 1/3 share a device.
        shares = max(1, math.floor(1 / gpus + 1e-9)) if gpus else 1
        self._cells_of_a_job = min(shares, jobs or shares)
        self._jobs = jobs
        self._folder = directory.absolute() / FOLDER_NAME
        self._submitted: dict[str, _Submitted] = {}
        self._lost_since: dict[str, float] = {}
        self._asked_at = time.monotonic()
        self._executor = self._submitit.AutoExecutor(
            self._folder, cluster=self._cluster, slurm_max_num_timeout=requeues
        )
        minutes = options.pop("time", LOCAL_MINUTES)
        additional = {"requeue": True, **options.pop("additional_parameters", {})}
        job_gpus = 0 if "gres" in options else math.ceil(gpus)
        self._executor.update_parameters(
            name=options.pop("job_name", directory.name),
            timeout_min=minutes,
            nodes=1,
            tasks_per_node=1,
            cpus_per_task=math.ceil(cpus * self._cells_of_a_job),
            **({"gpus_per_node": job_gpus} if job_gpus else {}),
            slurm_additional_parameters=additional,
            **{f"slurm_{name}": value for name, value in options.items()},
        )
        self._is_first = True

    def start(self, tasks: Sequence[Task]) -> None:
        """Submit tasks, as one array if they are several.

        Raises:
            UserError: If SLURM refuses them.
        """
        if self._is_first:
            self._cancel(waiting_only=True)
            self._is_first = False
        ends = self._folder / ENDS_NAME / uuid.uuid4().hex
        ends.mkdir(parents=True)
        size = self._cells_of_a_job
        groups = [tasks[first : first + size] for first in range(0, len(tasks), size)]
        for first in range(0, len(groups), MAX_ARRAY):
            part = groups[first : first + MAX_ARRAY]
            parallel = len(part) if self._jobs is None else max(1, self._jobs // size)
            self._executor.update_parameters(slurm_array_parallelism=parallel)
            jobs = self._submit([_job(group, ends) for group in part])
            for job, group in zip(jobs, part, strict=True):
                self._submitted[job.job_id] = _Submitted(job, {task.cell.name for task in group}, ends)

    def wait(self, seconds: float) -> list[Ending]:
        """Wait until a task ends, at most so long."""
        deadline = time.monotonic() + seconds
        while not (endings := self._endings()) and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(POLL_SECONDS, left))
        return endings

    def stop(self) -> None:
        """Cancel all jobs of the study, also those that an earlier process submitted."""
        if self._cluster == "slurm":
            self._cancel()
        else:
            for place in {submitted.ends for submitted in self._submitted.values()}:
                (place / STOP_NAME).touch()
            deadline = time.monotonic() + GRACE_SECONDS
            while any(not each.job.done() for each in self._submitted.values()):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        self._submitted.clear()
        (self._folder / ARRAYS_NAME).unlink(missing_ok=True)

    def _submit(self, jobs: Sequence[CellsJob]) -> list[Any]:
        try:
            # submitit prints the message that its error has.
            with contextlib.redirect_stderr(io.StringIO()):
                submitted: list[Any] = self._executor.submit_array(jobs)
        except (self._submitit.core.utils.UncompletedJobError, RuntimeError) as error:
            raise UserError(f"SLURM refused the jobs: {' '.join(str(error).split())}") from error
        with (self._folder / ARRAYS_NAME).open("a", encoding="utf-8") as file:
            file.writelines(f"{array}\n" for array in {_array_of(job.job_id): None for job in submitted})
        return submitted

    def _cancel(self, waiting_only: bool = False) -> None:
        """Cancel all jobs that this study has submitted, or those that have not begun."""
        if self._cluster != "slurm":
            return
        try:
            arrays = (self._folder / ARRAYS_NAME).read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return
        # Jobs that have ended are no error here.
        options = ["--state=PENDING"] if waiting_only else []
        subprocess.run(["scancel", *options, *arrays], capture_output=True, check=False)

    def _endings(self) -> list[Ending]:
        ends = {place: read_ends(place) for place in {each.ends for each in self._submitted.values()}}
        endings = []
        now = time.monotonic()
        for job_id, submitted in list(self._submitted.items()):
            for name in sorted(submitted.cells & ends[submitted.ends].keys()):
                endings.append(Ending(name, *ends[submitted.ends][name]))
                submitted.cells.discard(name)
            if submitted.cells and self._is_lost(submitted.job, now):
                state = str(submitted.job.state)
                endings += [
                    Ending(name, None, f"its job ended ({state})") for name in sorted(submitted.cells)
                ]
                submitted.cells.clear()
            if not submitted.cells:
                del self._submitted[job_id]
                self._lost_since.pop(job_id, None)
        return endings

    def _is_lost(self, job: Any, now: float) -> bool:
        """Return whether a job has ended without the ends of all its cells."""
        ask = now - self._asked_at > SECONDS_BETWEEN_QUERIES
        if ask:
            self._asked_at = now  # the answer is about all jobs
        if not job.done(force_check=ask):
            self._lost_since.pop(job.job_id, None)
            return False
        since = self._lost_since.setdefault(job.job_id, now)
        return now - since >= (SECONDS_UNTIL_VISIBLE if self._cluster == "slurm" else POLL_SECONDS)


def check_slurm(options: Mapping[str, Any]) -> None:
    """Check the options of `SlurmLauncher`.

    Raises:
        UserError: If submitit or SLURM is missing, or an option is invalid.
    """
    import_submitit()
    cluster = options.get("cluster", CLUSTERS[0])
    if cluster not in CLUSTERS:
        raise UserError(f"--slurm.cluster is {shown(cluster)}; expected slurm, or local to try it here")
    for name in options:
        if name in OURS:
            decides = f"{OURS[name]} decides it" if OURS[name] else "a cell is one process"
            raise UserError(f"--slurm.{name} cannot be set: {decides}")
    known = sorted(_parameters() - OURS.keys() | {"cluster", "requeues"})
    if unknown := [name for name in options if name not in known]:
        raise UserError(
            f"--slurm.{unknown[0]} is no parameter of submitit; expected one of {', '.join(known)}, or "
            f"--slurm.additional_parameters '{{{unknown[0]}: ...}}'{nearest(unknown[0], known)}"
        )
    for name, least, unit in (("time", 1, " of minutes"), ("requeues", 0, "")):
        value = options.get(name, 1)
        if type(value) is not int or value < least:
            raise UserError(
                f"--slurm.{name} is {shown(value)}; expected a whole number{unit}, at least {least}"
            )
    for name, kind, example in KINDS:
        if not isinstance(options.get(name, kind()), kind):
            raise UserError(f"--slurm.{name} is {shown(options[name])}; expected {example}")
    if cluster == "local":
        return
    if "time" not in options:
        raise UserError("--slurm.time is missing; expected the time limit of a job in minutes, as in 240")
    if missing := [command for command in ("sbatch", "srun") if not shutil.which(command)]:
        raise UserError(
            f"--launcher slurm does not find {missing[0]}; expected a machine that submits jobs to SLURM, or "
            "--slurm.cluster local to try it on this machine"
        )


def import_submitit() -> Any:
    """Import submitit.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import submitit
        import submitit.core.utils
    except ImportError as error:
        raise UserError(
            f"--launcher slurm needs the package submitit ({error}); run: pip install 'lit-gfs[slurm]'"
        ) from error
    # It reports every question to SLURM that fails, on top of the study's display.
    logging.getLogger("submitit").setLevel(logging.ERROR)
    return submitit


def _job(tasks: Sequence[Task], ends: Path) -> CellsJob:
    place = tasks[0].working_directory.absolute()
    cells = [CellOfJob(task.cell.name, str(place / task.directory), dict(task.environment)) for task in tasks]
    return CellsJob(cells, str(place), str(ends))


def _array_of(job_id: str) -> str:
    return job_id.partition("_")[0]


def _parameters() -> set[str]:
    from submitit import SlurmExecutor

    return set(SlurmExecutor._valid_parameters())
