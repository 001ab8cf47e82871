"""What ends a run in mid-course: environments that fail or hang, and disks that fill up."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import lit_gfs.collectors.step_timeout
from lit_gfs.utils.atomic_files import PARTIAL
from lit_gfs.utils.checksummed_files import is_intact, read_checksummed
from support.processes import Ended, run

FAULTY = "support.faulty_envs:Faulty-v0"
PPO = ["fit", "--config=ppo_cartpole", f"--data.env_id={FAULTY}", "--data.num_envs=2"]
PPO += ["--data.rollout_steps=8", "--data.total_steps=160", "--data.eval_every=96", "--data.eval_episodes=2"]
PPO += ["--data.minibatches=2", "--data.epochs=2", "--run.name=run", "--trainer.enable_progress_bar=false"]
RUN = Path("runs/run/version_0")
LEARNING, EVALUATING = 2, 4
"""Of the environments: the first is looked at, then there are two to learn from, and two to evaluate in."""


def options(fault: str, number: int, at: int) -> str:
    return f"--data.env_options={{fault: {fault}, number: {number}, at: {at}}}"


def quick_grace() -> None:
    lit_gfs.collectors.step_timeout.GRACE_SECONDS = 0.3


def one_line(ended: Ended) -> str:
    (line,) = ended.err.splitlines()
    return line


@pytest.mark.parametrize(("number", "at"), [(LEARNING, 60), (EVALUATING, 5)])
def test_an_environment_that_raises(number: int, at: int, tmp_path: Path) -> None:
    ended = run([*PPO, options("raise", number, at)], tmp_path)

    steps = 112 if number == LEARNING else 96
    assert ended.status == 4
    assert one_line(ended) == (
        f"lit_gfs: error: environment 1 of {FAULTY} raised ZeroDivisionError: no pole to balance, "
        f"after {steps} environment steps; the traceback is in {RUN}/error.txt; "
        f"to go on: python -m lit_gfs fit --ckpt_path {RUN}/last.ckpt"
    )
    assert "in _raise" in (tmp_path / RUN / "error.txt").read_text()
    assert read_checksummed(tmp_path / RUN / "last.ckpt")["RolloutDataModule"]["env_steps"] == steps


@pytest.mark.parametrize("number", [LEARNING, EVALUATING])
def test_an_observation_that_is_not_finite(number: int, tmp_path: Path) -> None:
    ended = run([*PPO, options("nan", number, 5)], tmp_path)

    steps = 0 if number == LEARNING else 96
    assert ended.status == 4
    assert one_line(ended).startswith(
        f"lit_gfs: error: environment 1 of {FAULTY} showed an observation that is not finite, "
        f"after {steps} environment steps; the traceback is in {RUN}/error.txt"
    )
    weights = read_checksummed(tmp_path / RUN / "last.ckpt")["state_dict"].values()
    assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.parametrize(("number", "steps"), [(LEARNING, None), (EVALUATING, 96)])
def test_an_environment_that_cannot_be_made(number: int, steps: int | None, tmp_path: Path) -> None:
    ended = run([*PPO, options("init", number, 0)], tmp_path)

    assert ended.status == 4
    after = f", after {steps} environment steps" if steps else ""
    assert one_line(ended).startswith(
        f"lit_gfs: error: {FAULTY} could not be made: RuntimeError: no track to run on{after}; the traceback"
    )
    # There is nothing to go on with before training has begun.
    assert (tmp_path / RUN / "last.ckpt").exists() == bool(steps)
    assert one_line(ended).endswith("last.ckpt" if steps else "; no checkpoint was written")


def test_the_first_environment_cannot_be_made(tmp_path: Path) -> None:
    ended = run([*PPO, options("init", 0, 0)], tmp_path)

    assert ended.status == 4
    assert one_line(ended) == (
        f"lit_gfs: error: {FAULTY} could not be made: RuntimeError: no track to run on; "
        "the traceback is in error.txt"
    )
    assert not (tmp_path / "runs").exists()
    assert "in __init__" in (tmp_path / "error.txt").read_text()


def test_an_environment_that_fails_at_its_first_reset(tmp_path: Path) -> None:
    ended = run([*PPO, options("reset", LEARNING, 0)], tmp_path)

    assert ended.status == 4
    assert f"after 0 environment steps; the traceback is in {RUN}/error.txt" in one_line(ended)
    assert one_line(ended).endswith("; no checkpoint was written")


def test_without_checkpoints_the_traceback_is_in_the_directory_of_the_run(tmp_path: Path) -> None:
    ended = run([*PPO, options("raise", LEARNING, 60), "--trainer.enable_checkpointing=false"], tmp_path)

    assert ended.status == 4
    assert f"the traceback is in {RUN}/error.txt; no checkpoint was written" in one_line(ended)
    assert list(tmp_path.rglob("error.txt")) == [tmp_path / RUN / "error.txt"]


@pytest.mark.parametrize(
    ("fault", "number", "at"),
    [("wait", LEARNING, 60), ("lock", LEARNING, 60), ("wait stubbornly", EVALUATING, 5)],
)
def test_an_environment_that_hangs(fault: str, number: int, at: int, tmp_path: Path) -> None:
    ended = run([*PPO, options(fault, number, at), "--data.step_timeout=1"], tmp_path, quick_grace)

    steps = 112 if number == LEARNING else 96
    assert ended.status == 4
    assert one_line(ended).startswith(
        f"lit_gfs: error: environment 1 of {FAULTY} did not come back from a step within 1 s "
        f"(data.step_timeout), after {steps} environment steps; the traceback is in "
    )
    assert "status             failed at step" in ended.out
    assert "faulty_envs.py" in (tmp_path / RUN / "error.txt").read_text()
    assert read_checksummed(tmp_path / RUN / "last.ckpt")["RolloutDataModule"]["env_steps"] == steps


def test_an_evaluation_that_failed_is_played_after_a_resume(tmp_path: Path) -> None:
    run([*PPO, options("none", 0, 0)], tmp_path)
    expected = read_checksummed(tmp_path / RUN / "last.ckpt")["state_dict"]
    (tmp_path / "runs").rename(tmp_path / "whole")

    run([*PPO, options("lock", EVALUATING, 5), "--data.step_timeout=1"], tmp_path, quick_grace)
    ended = run(["fit", "--ckpt_path=last", options("none", 0, 0)], tmp_path)

    assert ended.status == 0
    assert (tmp_path / RUN / "best.ckpt").is_file()
    actual = read_checksummed(tmp_path / RUN / "last.ckpt")["state_dict"]
    assert all(value.equal(actual[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    ("fault", "what"), [("exit", "SystemExit: 7"), ("panic", "Panic: index out of bounds")]
)
def test_an_environment_that_ends_the_process_is_at_fault(fault: str, what: str, tmp_path: Path) -> None:
    ended = run([*PPO, options(fault, LEARNING, 60)], tmp_path)

    assert ended.status == 4
    assert one_line(ended).startswith(f"lit_gfs: error: environment 1 of {FAULTY} raised {what}, after 112 ")
    assert is_intact(tmp_path / RUN / "last.ckpt")


@pytest.mark.parametrize(
    ("number", "fault", "what"),
    [
        (0, "wait on closing", "did not come back from closing within 1 s (data.step_timeout)"),
        (0, "exit on closing", "raised SystemExit: 7 on closing"),
        (LEARNING, "raise on closing", "raised ZeroDivisionError: no pole to balance on closing"),
        (EVALUATING, "wait on closing", "did not come back from closing within 1 s (data.step_timeout)"),
    ],
)
def test_an_environment_that_does_not_close_is_left_open(
    number: int, fault: str, what: str, tmp_path: Path
) -> None:
    ended = run([*PPO, options(fault, number, 0), "--data.step_timeout=1"], tmp_path)

    assert ended.status == 0
    assert one_line(ended) == f"lit_gfs: warning: {FAULTY} {what}; it is left open"
    assert read_checksummed(tmp_path / RUN / "last.ckpt")["RolloutDataModule"]["env_steps"] == 160


@pytest.mark.parametrize("number", [0, EVALUATING])
def test_an_environment_whose_closing_hangs_in_compiled_code(number: int, tmp_path: Path) -> None:
    arguments = [*PPO, options("lock on closing", number, 0), "--data.step_timeout=1"]
    ended = run(arguments, tmp_path, quick_grace)

    assert ended.status == 4
    what = "did not come back from closing within 1 s (data.step_timeout)"
    assert one_line(ended).startswith(f"lit_gfs: error: {FAULTY} {what}")
    if number == 0:
        assert not (tmp_path / RUN / "last.ckpt").exists()
    else:
        assert one_line(ended).endswith(f"to go on: python -m lit_gfs fit --ckpt_path {RUN}/last.ckpt")
        assert (tmp_path / RUN / "last.ckpt").exists()


@pytest.mark.parametrize("at", ["init", "step"])
def test_an_environment_that_goes_to_another_directory(at: str, tmp_path: Path) -> None:
    fault = options("chdir", LEARNING, 3) if at == "step" else options("chdir at once", 0, 0)
    ended = run([*PPO, fault], tmp_path)

    assert (ended.status, ended.err) == (0, "")
    assert f"last checkpoint    {RUN}/last.ckpt" in ended.out
    assert "curves             tensorboard --logdir runs" in ended.out
    assert is_intact(tmp_path / RUN / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["runs"]

    resumed = run(["fit", "--ckpt_path=last", "--data.total_steps=320", fault], tmp_path)

    assert resumed.status == 0
    assert read_checksummed(tmp_path / RUN / "last.ckpt")["RolloutDataModule"]["env_steps"] == 320


# -- output ----------------------------------------------------------------------------------------------


def nobody_reads_stdout() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def nobody_reads_anything() -> None:
    nobody_reads_stdout()
    os.dup2(1, 2)


def the_terminal_is_gone() -> None:
    ours, terminal = os.openpty()
    for descriptor in (1, 2):
        os.dup2(terminal, descriptor)
    os.close(terminal)
    os.close(ours)


@pytest.mark.parametrize("setup", [nobody_reads_stdout, nobody_reads_anything, the_terminal_is_gone])
def test_a_run_outlasts_those_who_read_its_output(setup: Any, tmp_path: Path) -> None:
    ended = run([*PPO, options("none", 0, 0), "--trainer.enable_progress_bar=true"], tmp_path, setup)

    assert (ended.status, ended.err) == (0, "")
    assert read_checksummed(tmp_path / RUN / "last.ckpt")["RolloutDataModule"]["env_steps"] == 160


@pytest.mark.parametrize("setup", [nobody_reads_anything, the_terminal_is_gone])
def test_a_run_is_stopped_although_nobody_reads_its_output(setup: Any, tmp_path: Path) -> None:
    ended = run([*PPO, options("SIGHUP", LEARNING, 60)], tmp_path, setup)

    assert ended.status == 128 + signal.SIGHUP
    assert is_intact(tmp_path / RUN / "last.ckpt")


def test_head_reads_the_beginning_of_a_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lit_gfs", "fit", "--config=quickstart", "--data.total_steps=600"]
    command += ["--data.learning_starts=100", "--data.eval_every=300", "--data.eval_episodes=1"]
    process = subprocess.Popen(
        [*command, "--run.name=run"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None

    assert process.stderr.read() == ""
    assert process.wait() == 0
    assert is_intact(tmp_path / RUN / "last.ckpt")


# -- disks -----------------------------------------------------------------------------------------------


def small_files() -> None:
    """Let no file grow beyond 64 KB: less than a checkpoint needs, more than anything else does at first."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))


@contextlib.contextmanager
def full_disk(directory: Path, room: int):
    """Have a directory on a disk of its own, of so many bytes; say whether that could be done."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    ended = run([*PPO, options("none", 0, 0)], tmp_path, small_files)

    assert ended.status == 5
    assert one_line(ended).startswith("lit_gfs: error: cannot write ")
    assert f"File too large; there is no intact checkpoint in {RUN}" in one_line(ended)
    assert list((tmp_path / RUN).glob(f"*{PARTIAL}")) == []


def test_a_full_disk_leaves_the_newest_intact_checkpoint(tmp_path: Path) -> None:
    # Where nothing can be mounted, a limit to the size of files stands in, of what is written in the end.
    (tmp_path / "runs").mkdir()
    with full_disk(tmp_path / "runs", 320 << 10) as mounted:
        ended = run([*PPO, options("none", 0, 0)], tmp_path, None if mounted else small_files)

        assert ended.status == 5
        reason = "No space left on device" if mounted else "File too large"
        assert reason in one_line(ended)
        checkpoints = list((tmp_path / RUN).glob("*.ckpt"))
        assert all(is_intact(path) for path in checkpoints)
        # There was room for the best and the last, and not for another.
        assert bool(checkpoints) == mounted
        assert ("to go on: python -m lit_gfs fit --ckpt_path" in one_line(ended)) == mounted
        assert list((tmp_path / RUN).glob(f"*{PARTIAL}")) == []


def obey_permissions() -> None:
    """Have root obey the permissions of files, as everybody else does."""
    if os.geteuid() != 0:
        return
    override = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice
    assert libc.capget(header, sets) == 0
    sets[0] &= ~override
    assert libc.capset(header, sets) == 0


def test_a_directory_that_takes_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o555)
    ended = run([*PPO, options("none", 0, 0)], tmp_path, obey_permissions)

    assert ended.status == 2
    assert one_line(ended) == (
        "lit_gfs: error: --run.root 'runs' cannot be written (Permission denied); choose another"
    )
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_directory_that_becomes_read_only_leaves_the_newest_intact_checkpoint(tmp_path: Path) -> None:
    ended = run([*PPO, options("protect", LEARNING, 60)], tmp_path, obey_permissions)
    (tmp_path / RUN).chmod(0o755)

    assert ended.status == 5
    line = one_line(ended)
    assert line.startswith("lit_gfs: error: cannot write ")
    assert line.endswith(
        f"Permission denied; the newest intact checkpoint is {RUN}/last.ckpt; "
        f"to go on: python -m lit_gfs fit --ckpt_path {RUN}/last.ckpt"
    )
    assert list((tmp_path / RUN).glob(f"*{PARTIAL}")) == []
    assert run(["fit", "--ckpt_path=last", options("none", 0, 0)], tmp_path).status == 0


@pytest.mark.parametrize("fault", ["remove", "replace"])
@pytest.mark.parametrize("logger", ["TensorBoard", "none"])
def test_a_run_directory_that_is_gone(fault: str, logger: str, tmp_path: Path) -> None:
    arguments = [*PPO, options(fault, LEARNING, 60)]
    if logger == "none":
        arguments += ["--trainer.logger=false"]
    ended = run(arguments, tmp_path)

    if (fault, logger) == ("remove", "none"):
        # Nothing is written but checkpoints, which make their directory anew.
        assert (ended.status, ended.err) == (0, "")
        assert is_intact(tmp_path / RUN / "last.ckpt")
        return
    assert ended.status == 5
    assert one_line(ended).startswith("lit_gfs: error: cannot ")
    assert str(RUN) in one_line(ended)
    assert "b'" not in one_line(ended)


class FailingEventFiles:
    """Has no event file last: their disk does not answer."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        def fail(writer: RecordWriter) -> None:
            raise OSError(self.number, os.strerror(self.number))

        RecordWriter.flush = fail


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EHOSTDOWN])
def test_a_disk_that_does_not_answer(number: int, tmp_path: Path) -> None:
    ended = run([*PPO, options("none", 0, 0)], tmp_path, FailingEventFiles(number))

    assert ended.status == 5
    assert one_line(ended).startswith(
        f"lit_gfs: error: cannot read or write {tmp_path / RUN}: {os.strerror(number)}; there is no intact "
    )


def test_a_file_that_a_program_misses_is_a_bug_of_its_own(tmp_path: Path) -> None:
    ended = run([*PPO, options("none", 0, 0)], tmp_path, a_missing_file)

    assert ended.status == 1
    assert "FileNotFoundError" in ended.err


def a_missing_file() -> None:
    from lit_gfs.agents import PPO as Agent

    Agent.on_train_start = lambda agent: Path("weights.npy").read_bytes()  # type: ignore[method-assign]


# -- the whole program -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)],
)
def test_the_program_itself_is_stopped(number: int, status: int, tmp_path: Path) -> None:
    arguments = ["fit", "--config=quickstart", "--data.total_steps=1000000", "--run.name=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lit_gfs", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / RUN / "config.yaml").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)

    assert process.returncode == status
    assert err.splitlines()[-1].endswith(f"to go on: python -m lit_gfs fit --ckpt_path {RUN}/last.ckpt")
    assert "Traceback" not in err
    assert is_intact(tmp_path / RUN / "last.ckpt")
