"""Every mistake ends with status 2 and one line on stderr, and leaves nothing behind."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer  # noqa: F401 - which has a Kron too
from lightning.pytorch.loggers import CSVLogger

import lit_gfs.optim  # noqa: F401 - whose Kron is then one of two
from support.command_line import DQN, refused, stopped
from support.mistakes import COMMANDS, FILES, OPTIONS


@pytest.fixture(autouse=True)
def _files(empty_directory: Path) -> None:
    Path("afile").write_text("")
    Path("adir").mkdir()
    Path("secret").write_text("not to be shown")
    Path("notes.txt").write_text("no checkpoint")


@pytest.mark.parametrize(("option", "expected"), OPTIONS, ids=[option[:60] for option, _ in OPTIONS])
def test_a_wrong_option_is_told(option: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(expected, line := refused([*DQN, option], capsys)), line


@pytest.mark.parametrize(("content", "expected"), FILES, ids=[content[:60] for content, _ in FILES])
def test_a_wrong_file_is_told(content: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(content)

    assert re.search(expected, line := refused([*DQN, "--config=mine.yaml"], capsys)), line


@pytest.mark.parametrize(("arguments", "expected"), COMMANDS)
def test_a_wrong_command_is_told(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(expected, line := refused(arguments, capsys)), line


def test_a_file_that_is_no_text_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_bytes(b"a: \xff")

    assert "is not text in UTF-8 (byte 3)" in refused([*DQN, "--config=mine.yaml"], capsys)


def test_what_stands_before_the_subcommand_is_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("subcommand: fit\nfit: {gfs: {path_int: {}}}")

    assert "--config stands before the subcommand" in refused(["--config=mine.yaml", "fit"], capsys)
    assert "--config stands before the subcommand" in refused(["--config=mine.yaml"], capsys)


@pytest.mark.parametrize(
    "arguments", [["--model=pipe"], ["--data.env_options", "pipe"], ["--config=mine.yaml"]]
)
def test_a_pipe_is_not_waited_for(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    Path("mine.yaml").write_text("trainer: {callbacks: pipe}")

    assert "'pipe' is a pipe or a device; expected a file" in refused([*DQN, *arguments], capsys)


def test_other_nodes_are_waited_for_where_somebody_started_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Which gets past the number of nodes, and no further.
    arguments = [*DQN, "--trainer.num_nodes=2", "--data.num_envs=0"]
    assert "trainer.num_nodes is 2" in refused(arguments, capsys)
    assert "num_envs is 0" in refused([*arguments, "--trainer.plugins=LightningEnvironment"], capsys)

    monkeypatch.setenv("MASTER_ADDR", "first-node")

    assert "num_envs is 0" in refused(arguments, capsys)


@pytest.mark.parametrize("logger", ["MLFlowLogger", "WandbLogger"])
def test_a_logger_whose_package_is_missing_is_told(logger: str, capsys: pytest.CaptureFixture[str]) -> None:
    package = logger.removesuffix("Logger").lower()
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")

    line = refused([*DQN, f"--trainer.logger={logger}"], capsys)

    assert re.search(rf"{logger} cannot be made: .*pip install -U '{package}", line), line


def test_a_library_s_class_that_refuses_its_arguments_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise ValueError("no such folder")

    monkeypatch.setattr(CSVLogger, "__init__", functools.wraps(CSVLogger.__init__)(refuse))

    line = refused([*DQN, "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: x}}"], capsys)

    assert line.endswith("CSVLogger cannot be made: no such folder")


def test_an_early_stop_by_a_score_of_other_environments_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    stopping = "{class_path: EarlyStopping, init_args: {monitor: eval/human_normalized_score}}"

    assert stopped([*DQN, f"--trainer.callbacks=[{stopping}]"]) == 2

    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("lit_gfs: error: trainer.callbacks: Early stopping conditioned on metric")
