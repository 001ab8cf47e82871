from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_gfs.errors import UserError
from lit_gfs.runs.layout import CONFIG_HEADER
from lit_gfs.runs.run_directory import RunDirectory


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stop the clock at 2000.25 seconds; keep how long anybody would have slept."""
    waits: list[float] = []
    monkeypatch.setattr(time, "time", lambda: 2000.25)
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose event file was made in the second in which the clock stands."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs/name/version_0")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG_HEADER + "run: {root: null, name: null, version: null}\n")
    (run / "events.out.tfevents.2000.host.1.0").touch()
    return run


@pytest.mark.parametrize("checkpoint", ["last.ckpt", "checkpoints/last.ckpt"])
def test_a_run_goes_on_in_its_directory_once_its_event_files_come_last(
    run: Path, slept: list[float], checkpoint: str
) -> None:
    directory = RunDirectory()
    directory.resume_from(str(run / checkpoint))

    assert (directory.root, directory.name, directory.version) == ("runs", "name", "version_0")
    assert slept == [0.75]


@pytest.mark.parametrize("checkpoint", [None, "elsewhere/last.ckpt", "runs/name/version_0/last.ckpt"])
def test_a_run_that_begins_elsewhere_does_not_wait(
    run: Path, slept: list[float], checkpoint: str | None
) -> None:
    directory = RunDirectory(name="another")
    directory.resume_from(checkpoint)

    assert (directory.root, directory.name, directory.version) == (None, "another", None)
    assert slept == []


def test_only_the_first_process_makes_a_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = RunDirectory(str(tmp_path / "runs"), "name")
    first.logger()
    monkeypatch.setenv("LOCAL_RANK", "1")
    second = RunDirectory(str(tmp_path / "runs"), "name")
    second.logger()
    assert [path.name for path in (tmp_path / "runs" / "name").iterdir()] == ["version_0"]

    told = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda _: "version_0"))
    second.agree(told)

    assert second.logger().log_dir == first.logger().log_dir


def test_the_checkpoints_of_another_run_are_not_overwritten(run: Path) -> None:
    named = {"root": "runs", "name": "name", "version": "version_0"}
    RunDirectory(**named).logger()  # a run that left no checkpoint can begin again
    (run / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"--run.version 'version_0' is taken: 'runs/name/version_0' has"):
        RunDirectory(**named).logger()
    going_on = RunDirectory(**named)
    going_on.resume_from(str(run / "last.ckpt"))
    going_on.logger()
