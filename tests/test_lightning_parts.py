"""Lightning's own callbacks and loggers in a run of the command line."""

from __future__ import annotations

import importlib.util
from datetime import timedelta
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar
from lightning.pytorch.callbacks.timer import Interval

from lit_gfs.callbacks.progress import StepProgressBar
from lit_gfs.configuration.config_files import complete_arguments
from lit_gfs.main import main
from support.command_line import DQN, BuiltOnly, refused

Color = Enum("Color", ["RED"])
RUN = Path("runs/dqn_CartPole-v1/version_0")


pytestmark = pytest.mark.usefixtures("empty_directory")


def built(*options: str) -> Trainer:
    chosen = [option for option in DQN if "enable_progress_bar" not in option]
    return BuiltOnly(complete_arguments([*chosen, *options])).trainer


def test_an_early_stop_can_be_gone_on_from() -> None:
    stopping = "{class_path: EarlyStopping, init_args: {monitor: eval/episode_return, mode: max, %s}}"
    main([*DQN, f"--trainer.callbacks=[{stopping % 'stopping_threshold: 1'}]"])
    # Before there is a new score, the checkpoint's is looked at.
    after_epochs = stopping % "stopping_threshold: 1e9, patience: 99, check_on_train_epoch_end: true"

    again = [f"--trainer.callbacks=[{after_epochs}]", f"--ckpt_path={RUN / 'last.ckpt'}"]
    main([*DQN, *again])

    checkpoint = torch.load(RUN / "last.ckpt", weights_only=True)
    assert checkpoint["ReplayDataModule"]["env_steps"] == 600


def test_an_early_stop_looks_at_evaluations_unless_told_otherwise() -> None:
    for option, expected in (("", False), (", check_on_train_epoch_end: true", True)):
        stopping = f"{{class_path: EarlyStopping, init_args: {{monitor: eval/episode_return{option}}}}}"
        (callback,) = found(built(f"--trainer.callbacks=[{stopping}]"), EarlyStopping)
        assert callback._check_on_train_epoch_end is expected


@pytest.mark.parametrize(
    "callback",
    [
        "{class_path: Timer, init_args: {duration: '00:00:10:00'}}",
        "{class_path: Timer, init_args: {duration: {minutes: 10}}}",
        "{class_path: ModelCheckpoint, init_args: {dirpath: kept, train_time_interval: '1:00:00'}}",
    ],
)
def test_times_are_written_as_they_are_read(callback: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = f"--trainer.callbacks=[{callback}]"
    with pytest.raises(SystemExit):
        main([*DQN, option, "--print_config"])
    Path("printed.yaml").write_text(capsys.readouterr().out)
    printed = yaml.safe_load(Path("printed.yaml").read_text())

    with pytest.raises(SystemExit):
        main(["fit", "--config=printed.yaml", "--print_config"])

    assert yaml.safe_load(capsys.readouterr().out)["trainer"] == printed["trainer"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (timedelta(minutes=10), "0:10:00"),
        (PurePosixPath("a/b"), "a/b"),
        (Interval.step, "step"),
        (Color.RED, "RED"),
    ],
)
def test_defaults_that_yaml_has_no_word_for_are_text(value: object, expected: str) -> None:
    assert yaml.safe_load(yaml.safe_dump({"default": value})) == {"default": expected}


@pytest.mark.parametrize("name", ["RichProgressBar", "TQDMProgressBar"])
def test_a_bar_of_somebody_s_choice_is_the_only_one(name: str) -> None:
    bars = found(built(f"--trainer.callbacks={name}"), ProgressBar)

    assert [type(bar).__name__ for bar in bars] == [name]
    assert [type(bar) for bar in found(built(), ProgressBar)] == [StepProgressBar]


def test_the_summary_names_where_checkpoints_and_loggers_write(capfd: pytest.CaptureFixture[str]) -> None:
    csv = "{class_path: CSVLogger, init_args: {save_dir: csv, name: a, version: b}}"
    events = "{class_path: TensorBoardLogger, init_args: {save_dir: tb, name: a, version: b}}"
    own = "{class_path: ModelCheckpoint, init_args: {dirpath: kept}}"

    main([*DQN, f"--trainer.logger=[{csv}, {events}]", f"--trainer.callbacks=[{own}]"])

    told = [line.split()[-1] for line in capfd.readouterr().out.splitlines() if " directory " in line]
    assert told == [str(RUN), "csv/a/b", "tb/a/b"]
    assert (RUN / "last.ckpt").exists()


def test_the_summary_names_a_directory_once(capfd: pytest.CaptureFixture[str]) -> None:
    main(DQN)

    assert [line.split() for line in capfd.readouterr().out.splitlines() if " directory " in line] == [
        ["run", "directory", str(RUN)]
    ]


@pytest.mark.skipif(importlib.util.find_spec("psutil") is not None, reason="psutil is installed")
def test_a_callback_whose_package_is_missing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused([*DQN, "--trainer.callbacks=DeviceStatsMonitor"], capsys)

    assert "trainer.callbacks: `DeviceStatsMonitor` cannot log CPU stats" in line


def found(trainer: Trainer, kind: type) -> list[Any]:
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
