"""Fits that end as they are told, for the worker processes of a study: nothing is trained."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lit_gfs.errors import UserError
from lit_gfs.study import lease
from lit_gfs.study.cell.planned import CELLS_DIRECTORY, fit_command
from lit_gfs.study.cell.task import Task
from lit_gfs.study.cell.worker import Fitted, Tell
from lit_gfs.study.planning.plan import Cell, Score, Study, read_study
from lit_gfs.utils.checksummed_files import write_checksummed

FIT = "support.study_fits:fit"
TAG = "eval/episode_return"
CHECKPOINT = {"state_dict": {}, "loops": {}, "optimizer_states": []}


def study(*ends: str, seeds: int = 1, **options: str) -> Study:
    """Plan cells whose fits end as told."""
    return read_study(
        {
            "name": "example",
            "factors": {
                "task": {"t": {"floor": 0, "reference": 1, "options": options}},
                "scale": {"base": {}},
                "recipe": {end: {"options": {"ends": end}} for end in ends},
                "seed": list(range(seeds)),
            },
            "compare": {"baseline": ends[0], "base_scale": "base"},
        }
    )


def make_task(cell: Cell, directory: Path) -> Task:
    """Make the task of a cell with such a fit, as the driver does."""
    return Task(
        cell=cell,
        command=fit_command(cell, directory, 1),
        directory=directory / CELLS_DIRECTORY / cell.name,
        score=Score(),
        keep_checkpoints=True,
        environment={"OMP_NUM_THREADS": "1"},
        working_directory=Path.cwd(),
        launcher="test",
        fit=FIT,
    )


def option(command: list[str], name: str) -> str:
    """Return the last value that a command gives to an option."""
    return [argument.split("=", 1)[1] for argument in command if argument.startswith(f"--{name}=")][-1]


def run_directory(command: list[str]) -> Path:
    return Path(option(command, "run.root"), option(command, "run.name"), option(command, "run.version"))


def write_events(
    directory: Path, curves: dict[str, list[tuple[int, float]]], started_at: float = 0.0
) -> None:
    """Log scalars, each point a second after the one before it."""
    writer = EventFileWriter(str(directory))
    for tag, points in curves.items():
        for second, (step, value) in enumerate(points):
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(wall_time=started_at + second, step=step, summary=summary))
    writer.close()


def fit(command: list[str], tell: Tell) -> Fitted:
    """Do what ``--ends`` says; write down when, how and with what the fit ran."""
    lease.RENEWAL_SECONDS = 0.1  # for speed
    tell(100, 200)
    began = time.time()
    directory, ends = run_directory(command), option(command, "ends")
    seed = int(option(command, "seed_everything"))
    print(f"a fit that ends with {ends}")
    curves = {TAG: [(100, 0.0), (200, float(seed))]}
    if ends == "error":
        raise UserError(f"no such environment; seed {seed}")
    if ends == "bug":
        raise ValueError("a bug\nover two lines")
    if ends == "exit":
        sys.exit(2)
    if ends == "abrupt exit":
        print("goodbye", flush=True)
        os._exit(3)
    if ends == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if ends == "full disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory / "last.ckpt"))
    if ends == "kill once" and not any(argument.startswith("--ckpt_path=") for argument in command):
        write_checksummed(CHECKPOINT, directory / "last.ckpt")
        write_checksummed(CHECKPOINT, directory / "previous.ckpt")
        write_checksummed({}, directory / "replay" / "replay_000000000000-000000000001.pt")
        os.kill(os.getpid(), signal.SIGKILL)
    if ends == "lost once" and not any(argument.startswith("--ckpt_path=") for argument in command):
        write_checksummed(CHECKPOINT, directory / "last.ckpt")
        (directory / "parent").write_text(str(os.getppid()))
        time.sleep(600)
    if ends == "silence":
        curves = {"train/episode_return": [(100, 1.0)]}
    if ends == "nan":
        curves = {TAG: [(100, 0.0), (200, float("nan"))]}
    if ends == "never":
        (directory / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    if ends == "wait":  # for the file that lets it go on
        (directory / "pid").write_text(str(os.getpid()))
        while not (directory.parent / "go").exists():
            time.sleep(0.01)
    if ends == "together":
        (directory / "begun").touch()
        while len(list(directory.parent.glob("*/begun"))) < 2 and time.time() < began + 30:
            time.sleep(0.01)
    time.sleep(0.2)
    write_events(directory, curves, began)
    facts = {
        "began": began,
        "ended": time.time(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "pid": os.getpid(),
        "frozen": gc.get_freeze_count(),
        "slurm": [name for name in os.environ if name.startswith("SLURM_")],
        "command": command,
    }
    (directory / "facts.json").write_text(json.dumps(facts))
    return Fitted(began, time.time() - began, parameters=10, env_id=None, cpu_seconds=0.5)
