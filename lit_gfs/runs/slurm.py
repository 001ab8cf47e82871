"""Runs in jobs of SLURM.

Lightning's own requeueing writes a checkpoint into the working directory, and every later run there would
resume from it, even an unrelated one. Here SIGUSR1 stops a run like any other signal, and a requeued job
resumes the run that it began.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

from lit_gfs.runs.checkpoints import newest_intact
from lit_gfs.runs.layout import CONFIG_NAME
from lit_gfs.utils.formats import relative_path


class _NamedCheckpoints(_CheckpointConnector):
    """Loads only the named checkpoint, and ignores others in the working directory."""

    @property
    def _hpc_resume_path(self) -> None:
        return None


def switch_off_requeueing(trainer: Trainer) -> None:
    """Keep a Trainer from writing or loading Lightning's checkpoints of requeued jobs."""
    private = cast(Any, trainer)
    environment = private._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False
    private._checkpoint_connector = _NamedCheckpoints(trainer)


def job_line(arguments: Sequence[str]) -> str:
    """Return the comment that names the job in a configuration; empty outside of SLURM.

    Args:
        arguments: The command line, because a job may begin several runs.
    """
    job = os.environ.get("SLURM_JOB_ID")
    return f"# SLURM job {job}: {json.dumps(list(arguments))}\n" if job else ""


def is_requeued() -> bool:
    """Return whether this process belongs to a requeued job."""
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    return "SLURM_JOB_ID" in os.environ and restarts.isdecimal() and int(restarts) > 0


def find_requeued(group: Path, arguments: Sequence[str]) -> Path | None:
    """Find the checkpoint that a requeued job resumes from, and name it on stderr.

    Args:
        group: Directory of a group of runs.
        arguments: The command line.

    Returns:
        The newest intact checkpoint of the latest run that this job began with the same arguments; ``None``
        if there is none yet.
    """
    line = job_line(arguments)
    configs = [path for path in group.glob(f"*/{CONFIG_NAME}") if _second_line(path) == line]
    for config in sorted(configs, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        checkpoint, _ = newest_intact(config.parent)
        if checkpoint is not None:
            if os.environ.get("SLURM_PROCID", "0") == "0":
                job = os.environ["SLURM_JOB_ID"]
                going_on = f"SLURM runs job {job} again: going on from {relative_path(checkpoint)}"
                print("lit_gfs:", going_on, file=sys.stderr)
            return checkpoint
    return None


def _second_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        file.readline()
        return file.readline()
