"""The program of a cell, started as a launcher starts it on any machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lit_gfs.errors import StorageFault
from lit_gfs.study.cell.__main__ import main
from lit_gfs.study.cell.files import CellFiles
from lit_gfs.study.cell.task import Task, read_task
from lit_gfs.study.lease import read_lease
from lit_gfs.study.results.collect import read_result
from lit_gfs.study.results.table import FINISHED
from support.processes import wait_for
from support.study_fits import make_task, study

TESTS = Path(__file__).resolve().parents[2]


def prepared(ends: str, directory: Path) -> Task:
    (cell,) = study(ends).cells()
    task = make_task(cell, directory)
    CellFiles(directory).prepare(task)
    return task


def start(task: Task, elsewhere: Path) -> subprocess.Popen[bytes]:
    """Start the program in another directory; it ends when its standard input is closed."""
    command = [sys.executable, "-m", "lit_gfs.study.cell", str(task.directory.absolute())]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=elsewhere, env=environment)


def test_a_task_is_read_as_it_was_written(tmp_path: Path) -> None:
    task = prepared("well", tmp_path)
    assert read_task(task.directory) == task


def test_the_program_of_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths refer to the study's working directory
    study_directory = Path("runs/study")
    well, full, ended, abandoned = (
        prepared(ends, study_directory) for ends in ("well", "full disk", "wait", "never")
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    processes = [start(task, elsewhere) for task in (well, full, ended, abandoned)]

    assert processes[0].wait(300) == 0
    result = read_result(well.directory)
    assert result is not None
    assert result.status == FINISHED

    output, _ = processes[1].communicate(timeout=300)
    assert processes[1].returncode == StorageFault.status
    assert output.decode().endswith("last.ckpt: No space left on device\n")
    assert read_result(full.directory) is None

    wait_for(ended.directory / "pid")
    processes[2].terminate()
    assert processes[2].wait(60) == 128 + signal.SIGTERM
    assert read_lease(ended.directory) is None  # others need not wait until it expires

    wait_for(abandoned.directory / "pid")
    assert processes[3].stdin is not None
    processes[3].stdin.close()  # as where the process that started it was killed
    assert processes[3].wait(60) == 1
    assert read_result(abandoned.directory) is None
    for process in processes:
        process.stdout.close()  # type: ignore[union-attr]


def test_a_directory_without_a_task_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere' has no task.json that can be read" in capsys.readouterr().err
    assert main([]) == 2
    assert "expected one cell's directory" in capsys.readouterr().err
