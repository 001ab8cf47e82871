"""Runs of the command line in two processes: one run directory, and one end, told in one line."""

from __future__ import annotations

import functools
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

import lit_gfs.collectors.step_timeout
from lit_gfs.utils.checksummed_files import is_intact, read_checksummed
from support.comparison import scalars
from support.processes import finish, start

FAULTY = "support.faulty_envs:Faulty-v0"
PPO = ["fit", "--config=ppo_cartpole", f"--data.env_id={FAULTY}", "--data.num_envs=2"]
PPO += ["--data.rollout_steps=8", "--data.total_steps=320", "--data.eval_every=192", "--data.eval_episodes=3"]
PPO += ["--data.minibatches=2", "--data.epochs=2", "--run.name=run", "--trainer.enable_progress_bar=false"]
PPO += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
RUN = Path("runs/run/version_0")


def options(fault: str, number: int, at: int, rank: int) -> str:
    return f"--data.env_options={{fault: {fault}, number: {number}, at: {at}, rank: {rank}}}"


def become(rank: int, port: int, setup: Callable[[int], None] | None) -> None:
    """Be what torchrun, srun or a user makes of a process; print to files of its own."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": 0}
    os.environ.update({name: str(value) for name, value in place.items()})
    rank_zero_only.rank = rank  # read when Lightning is imported, which the server of the processes has done
    for descriptor, name in ((1, "out"), (2, "err")):
        with open(f"{name}_{rank}.txt", "wb") as file:
            os.dup2(file.fileno(), descriptor)
    lit_gfs.collectors.step_timeout.GRACE_SECONDS = 0.3
    if setup is not None:
        setup(rank)


def run_two(
    arguments: list[str], directory: Path, setup: Callable[[int], None] | None = None
) -> tuple[list[int], list[str]]:
    """Run two processes that are started one by one; return their exit statuses and their lines on stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [start(arguments, directory, functools.partial(become, rank, port, setup)) for rank in (0, 1)]
    statuses = [finish(process, directory, timeout=60).status for process in ranks]
    said = [(directory / f"err_{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    return statuses, said[0] + said[1]


@pytest.mark.slow
def test_two_processes_write_into_one_run_directory_and_resume_there(tmp_path: Path) -> None:
    statuses, said = run_two([*PPO, options("none", 0, 0, 0)], tmp_path)

    assert statuses == [0, 0]
    assert said == []
    assert list((tmp_path / "runs").glob("*/*")) == [tmp_path / RUN]
    content = read_checksummed(tmp_path / RUN / "last.ckpt")
    assert content["RolloutDataModule"]["env_steps"] == 320
    best = next(
        float(state["best_model_score"])
        for state in content["callbacks"].values()
        if state.get("monitor") == "eval/episode_return"
    )
    assert best == max(value for _, value in scalars(tmp_path / RUN)["eval/episode_return"])

    resume = ["fit", "--ckpt_path=last", "--data.total_steps=480", options("none", 0, 0, 0)]
    statuses, said = run_two(resume, tmp_path)

    assert statuses == [0, 0], said
    assert list((tmp_path / "runs").glob("*/*")) == [tmp_path / RUN]
    assert read_checksummed(tmp_path / RUN / "last.ckpt")["RolloutDataModule"]["env_steps"] == 480

    statuses, said = run_two(["validate", f"--ckpt_path={RUN}/last.ckpt", options("none", 0, 0, 0)], tmp_path)

    assert statuses == [0, 0], said
    assert list((tmp_path / "runs").glob("*/*")) == [tmp_path / RUN]


@pytest.mark.parametrize(
    ("fault", "rank"),
    [
        ("raise", 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("raise", 0), ("lock", 0), ("lock", 1)]),
    ],
)
def test_an_environment_that_fails_in_one_process_ends_both(fault: str, rank: int, tmp_path: Path) -> None:
    arguments = [*PPO, options(fault, 2, 60, rank), "--data.step_timeout=1"]
    statuses, said = run_two(arguments, tmp_path)

    what = {"raise": "raised ZeroDivisionError: no pole to balance", "lock": "did not come back from a step"}
    assert statuses == [4, 4]
    (line,) = said
    assert line.startswith(f"lit_gfs: error: environment 1 of {FAULTY} {what[fault]}")
    assert line.endswith(
        f", after 224 environment steps; the traceback is in {RUN}/error.txt; "
        f"to go on: python -m lit_gfs fit --ckpt_path {RUN}/last.ckpt"
    )
    assert list(tmp_path.rglob("error.txt")) == [tmp_path / RUN / "error.txt"]
    assert list((tmp_path / "runs").glob("*/*")) == [tmp_path / RUN]


@pytest.mark.parametrize(
    ("name", "status", "rank"),
    [
        ("SIGTERM", 143, 1),
        pytest.param("SIGTERM", 143, 0, marks=pytest.mark.slow),
        pytest.param("SIGINT", 130, 0, marks=pytest.mark.slow),
        pytest.param("SIGINT", 130, 1, marks=pytest.mark.slow),
        pytest.param("SIGINT twice", 130, 0, marks=pytest.mark.slow),
        pytest.param("SIGINT twice", 130, 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_process_stops_both(name: str, status: int, rank: int, tmp_path: Path) -> None:
    statuses, said = run_two([*PPO, options(name, 2, 40, rank)], tmp_path)

    assert statuses == [status, status]
    *before, line = said
    assert len(before) == (rank == 0)  # that it stops after this step
    assert line.startswith(f"lit_gfs: stopped by {name.partition(' ')[0]}")
    if "twice" not in name:
        assert line.endswith(f"; to go on: python -m lit_gfs fit --ckpt_path {RUN}/last.ckpt")
        assert is_intact(tmp_path / RUN / "last.ckpt")


def test_a_request_that_one_process_refuses_leaves_nothing(tmp_path: Path) -> None:
    statuses, said = run_two([*PPO, options("refuse", 2, 2, 1)], tmp_path)

    assert statuses == [2, 2]
    assert said == ["lit_gfs: error: expected another environment"]
    assert not (tmp_path / RUN / "last.ckpt").exists()


def break_down(broken: int, rank: int) -> None:
    def training_step(*arguments: Any) -> None:
        raise AttributeError("a bug")

    if rank == broken:
        lit_gfs.agents.PPO.training_step = training_step  # type: ignore[method-assign, assignment]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_has_one_traceback(rank: int, tmp_path: Path) -> None:
    statuses, said = run_two([*PPO, options("none", 0, 0, 0)], tmp_path, functools.partial(break_down, rank))

    assert statuses == [1, 1]
    assert sum("Traceback" in line for line in said) == 1
    assert said[-1] == "AttributeError: a bug"


def allow_small_files(limited: int, rank: int) -> None:
    if rank == limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, 16 << 10))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_for_one_process_ends_both(rank: int, tmp_path: Path) -> None:
    dqn = [
        "fit",
        "--config=quickstart",
        "--data.total_steps=4000",
        "--data.eval_every=2000",
        "--run.name=run",
    ]
    dqn += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    dqn += ["--trainer.enable_progress_bar=false"]
    statuses, said = run_two(dqn, tmp_path, functools.partial(allow_small_files, rank))

    assert statuses == [5, 5]
    (line,) = said
    assert line.startswith("lit_gfs: error: cannot write ")


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("raise", 4),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("SIGKILL", 137), ("refuse", 2)]),
    ],
)
def test_the_processes_that_the_program_starts_end_with_it(fault: str, status: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lit_gfs", *PPO, "--trust=support.faulty_envs", options(fault, 2, 60, 1)]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=120,  # also of children, whose stderr it is
    )

    assert ended.returncode == status
    (line,) = ended.stderr.splitlines()
    assert line.startswith("lit_gfs: error: ")
    assert ("process 1 of this run was ended by SIGKILL" in line) == (fault == "SIGKILL")
    assert "status             failed at step" in ended.stdout
    assert list((tmp_path / "runs").glob("*/*")) == [tmp_path / RUN]


@pytest.mark.slow
def test_a_run_that_begins_in_no_process_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lit_gfs", *PPO, "--trust=support.faulty_envs", options("init", 0, 0, 1)]
    path = str(Path(__file__).parent)
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )

    assert ended.returncode == 4
    (line,) = ended.stderr.splitlines()
    assert line.endswith("could not be made: RuntimeError: no track to run on; the traceback is in error.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["error.txt"]
