"""Runs in jobs of SLURM, which are told by environment variables and signals alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from lit_gfs.configuration.config_trust import trust
from lit_gfs.main import main
from lit_gfs.utils.checksummed_files import read_checksummed
from support.command_line import Finished, stopped

trust(__name__)

FIT = ["fit", "--config=quickstart", "--data.total_steps=260", "--data.learning_starts=100", "--run.name=run"]
FIT += ["--data.eval_every=130", "--data.eval_episodes=1", "--data.batch_size=16", "--model.trunk.width=16"]
FIT += ["--trainer.enable_progress_bar=false"]
RUNS = Path("runs/run")


class NoticeAtStep(Callback):
    """Sends what SLURM sends some time before it ends a job."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)


NOTICE = f"--trainer.callbacks={{class_path: {__name__}.NoticeAtStep, init_args: {{step: 30}}}}"


@pytest.fixture(autouse=True)
def _in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    variables = {"NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 7, "JOB_NAME": "train"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_weights_in_the_working_directory_are_nobodys(
    finished: Finished, subcommand: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(FIT)
    expected = read_checksummed(RUNS / "version_0/last.ckpt")["global_step"]
    (RUNS / "version_0/last.ckpt").rename("hpc_ckpt_1.ckpt")
    Path("hpc_ckpt_2.ckpt").write_text("no checkpoint at all")

    if subcommand == "fit":
        main(FIT)
        assert read_checksummed(RUNS / "version_1/last.ckpt")["global_step"] == expected
    else:
        main(["validate", "--config=quickstart", "--data.eval_episodes=1", "--model.trunk.width=16"])
    assert capsys.readouterr().err == ""


def test_a_requeued_job_goes_on_in_its_run(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(FIT)
    expected = read_checksummed(RUNS / "version_0/last.ckpt")

    assert stopped([*FIT, NOTICE]) == 128 + signal.SIGUSR1
    assert list(Path().glob("*.ckpt")) == []  # Lightning's own
    assert read_checksummed(RUNS / "version_1/last.ckpt")["global_step"] in (30, 31)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    capsys.readouterr()
    main([*FIT, NOTICE])

    checkpoint = RUNS / "version_1/last.ckpt"
    assert capsys.readouterr().err == f"lit_gfs: SLURM runs job 7 again: going on from {checkpoint}\n"
    assert read_checksummed(checkpoint)["global_step"] == expected["global_step"]
    assert {path.name for path in RUNS.iterdir()} == {"version_0", "version_1"}


@pytest.mark.parametrize(
    ("variable", "value"), [("SLURM_RESTART_COUNT", "0"), ("SLURM_JOB_ID", "8"), ("arguments", "other")]
)
def test_another_job_or_another_command_begins_anew(
    finished: Finished, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(FIT)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    arguments = list(FIT)
    if variable == "arguments":
        arguments.append("--seed_everything=5")
    else:
        monkeypatch.setenv(variable, value)

    main(arguments)

    assert (RUNS / "version_1/last.ckpt").is_file()


def test_a_job_that_was_ended_before_its_first_checkpoint_begins_anew(
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished(FIT)
    for checkpoint in RUNS.rglob("*.ckpt"):
        checkpoint.unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    main(FIT)

    assert (RUNS / "version_1/last.ckpt").is_file()
