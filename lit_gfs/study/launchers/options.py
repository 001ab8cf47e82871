"""The options of a study that say where its cells run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from lit_gfs.errors import UserError
from lit_gfs.study.launchers.gpu_shares import GpuShares, visible_devices
from lit_gfs.study.launchers.launcher import Launcher
from lit_gfs.study.launchers.local import LocalLauncher

RETRIES = 2
"""How often a cell starts again, unless the user says otherwise."""


def add_launcher_options(parser: ArgumentParser) -> None:
    """Add the options that say where cells run, and with what."""
    parser.add_argument(
        "--jobs",
        type=PositiveInt | None,
        help="Cells at a time; null: as many as there are CPU cores, or shares of the GPUs; on a cluster, as "
        "many as it has room for.",
    )
    parser.add_argument(
        "--launcher",
        type=Literal["local", "ray", "slurm"],
        default="local",
        help="Where cells run: as processes of this machine, as tasks of Ray, or as jobs of SLURM.",
    )
    parser.add_argument(
        "--address",
        type=str | None,
        help="Ray's cluster, as in auto or HOST:6379; null: Ray on this machine, for this study alone.",
    )
    parser.add_argument(
        "--slurm",
        type=dict[str, Any] | None,
        help="Parameters of sbatch by name, as in --slurm.partition=gpu --slurm.time=240 (minutes).",
    )
    parser.add_argument(
        "--cpus",
        type=PositiveFloat | None,
        help="CPU cores of a cell, for Ray and SLURM; null: as many as --threads.",
    )
    parser.add_argument(
        "--gpus",
        type=PositiveFloat | None,
        help="The part of a GPU that a cell needs, as in 0.25; null: none of Ray or SLURM, and on this "
        "machine, cells share all GPUs without a limit.",
    )
    # A fixed number, not a share of the cores: results must not depend on the number of parallel cells.
    parser.add_argument("--threads", type=PositiveInt, default=1, help="Threads that a cell computes with.")
    parser.add_argument(
        "--retries",
        type=NonNegativeInt,
        default=RETRIES,
        help="How often a cell starts again after its process was killed, or its machine was lost.",
    )


class Choice(NamedTuple):
    """A launcher that is not started yet.

    Attributes:
        options: The parsed options.
        jobs: Number of parallel cells; ``None`` leaves it to the cluster.
        shares: The GPUs of this machine, for processes of this machine.
    """

    options: Namespace
    jobs: int | None
    shares: GpuShares | None = None

    @property
    def queues(self) -> bool:
        """Whether the launcher takes all cells at once, and starts them when there is room."""
        return self.options.launcher == "ray" or self._is_slurm

    @property
    def handed_over(self) -> int | None:
        """Number of cells that the launcher gets at a time; ``None`` for all."""
        return None if self._is_slurm else self.jobs

    def make(self, directory: Path) -> Launcher:
        """Start the launcher.

        Args:
            directory: The study's directory.

        Raises:
            UserError: If a package is missing, the cluster cannot be reached, or it lacks what a cell needs.
        """
        options = self.options
        if options.launcher == "local":
            return LocalLauncher(self.shares)
        cpus, gpus = options.cpus or float(options.threads), options.gpus or 0.0
        if options.launcher == "ray":
            # Imported late, like SLURM's: each needs a package that others do without.
            from lit_gfs.study.launchers.ray import RayLauncher

            return RayLauncher(options.address, cpus, gpus, self.jobs)
        from lit_gfs.study.launchers.slurm import SlurmLauncher

        return SlurmLauncher(directory, options.slurm or {}, cpus, gpus, self.jobs)

    def described(self) -> dict[str, str]:
        """Describe for the report where the cells run."""
        cells = {"cells at a time": "as the cluster has room" if self.jobs is None else str(self.jobs)}
        launcher = self.options.launcher
        return cells if launcher == "local" else {"launcher": launcher, **cells}

    @property
    def _is_slurm(self) -> bool:
        """Whether SLURM has a queue for the cells; processes in the place of its jobs have none."""
        return self.options.launcher == "slurm" and (self.options.slurm or {}).get("cluster") != "local"


def choose_launcher(options: Namespace) -> Choice:
    """Read the options, and check them as far as that needs no cluster.

    Raises:
        UserError: If options contradict each other, or a package is missing.
    """
    _check_owners(options)
    if options.launcher == "local":
        shares = None if options.gpus is None else GpuShares(options.gpus, visible_devices())
        return Choice(options, _local_jobs(options, shares), shares)
    if options.gpus is not None and options.gpus > 1 and options.gpus % 1:
        raise UserError(
            f"--gpus is {options.gpus:g}; expected a part of a GPU, as in 0.25, or a whole number"
        )
    if options.launcher == "ray":
        from lit_gfs.utils.ray_cluster import import_ray

        import_ray("--launcher ray")
        return Choice(options, options.jobs if options.address else _local_jobs(options, None))
    from lit_gfs.study.launchers.slurm import check_slurm

    check_slurm(options.slurm or {})
    choice = Choice(options, options.jobs)
    return choice if choice.queues else choice._replace(jobs=_local_jobs(options, None))


def available_cores() -> int:
    """Count the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_owners(options: Namespace) -> None:
    """Refuse options of another launcher."""
    owners = {"address": ("ray",), "slurm": ("slurm",), "cpus": ("ray", "slurm")}
    for name, launchers in owners.items():
        if getattr(options, name) is not None and options.launcher not in launchers:
            raise UserError(
                f"--{name} is for {' and '.join(f'--launcher {each}' for each in launchers)}; "
                f"--launcher is {options.launcher}"
            )


def _local_jobs(options: Namespace, shares: GpuShares | None) -> int:
    jobs: int | None = options.jobs
    cores = max(1, int(available_cores() / (options.cpus or options.threads)))
    if shares is None:
        return jobs or cores
    if jobs is not None and jobs > shares.cells:
        raise UserError(f"--jobs is {jobs}; with --gpus {options.gpus:g}, all GPUs hold {shares.cells} cells")
    return jobs or min(shares.cells, cores)
