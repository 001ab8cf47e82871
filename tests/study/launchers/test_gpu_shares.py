"""Cells of one machine share its GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_gfs.errors import UserError
from lit_gfs.study.cell.files import CellFiles
from lit_gfs.study.launchers.gpu_shares import GpuShares, visible_devices
from lit_gfs.study.launchers.launcher import Ending
from lit_gfs.study.launchers.local import LocalLauncher
from support.command_line import stopped
from support.study_fits import make_task, study


@pytest.mark.parametrize(
    ("share", "devices", "cells"),
    [(1, 2, 2), (0.5, 2, 4), (0.25, 1, 4), (1 / 3, 1, 3), (0.3, 2, 6), (0.1, 1, 10)],
)
def test_devices_hold_as_many_cells_as_they_have_shares(share: float, devices: int, cells: int) -> None:
    assert GpuShares(share, [str(index) for index in range(devices)]).cells == cells


def test_a_cell_gets_the_device_with_the_fewest_cells() -> None:
    shares = GpuShares(0.5, ["3", "GPU-8a"])

    assert [shares.take(cell)["CUDA_VISIBLE_DEVICES"] for cell in "abcd"] == ["3", "GPU-8a", "3", "GPU-8a"]
    with pytest.raises(ValueError, match="all 4 shares are taken"):
        shares.take("e")
    shares.give_back("b")
    assert shares.take("e") == {"CUDA_VISIBLE_DEVICES": "GPU-8a"}


@pytest.mark.parametrize(
    ("variable", "devices"), [("2, 5", ["2", "5"]), ("", []), ("-1", []), ("MIG-1/0", ["MIG-1/0"])]
)
def test_the_devices_that_this_process_sees(
    variable: str, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_devices() == devices


@pytest.mark.parametrize(
    ("share", "devices", "message"),
    [
        (1.5, ["0"], "--gpus is 1.5; expected the part of a GPU that a cell needs, as in 0.25"),
        (0.25, [], "--gpus is 0.25, and this machine shows no GPU; leave --gpus out"),
    ],
)
def test_shares_that_cannot_be_had_are_told(share: float, devices: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GpuShares(share, devices)


def test_more_jobs_than_shares_are_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    root = f"--root={tmp_path / 'runs'}"

    assert stopped(["study", "--config", "studies/smoke", root, "--gpus=0.5", "--jobs=5"]) == 2

    assert "--jobs is 5; with --gpus 0.5, all GPUs hold 4 cells" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_each_process_sees_its_own_device(tmp_path: Path) -> None:
    launcher = LocalLauncher(GpuShares(0.5, ["5", "7"]))
    tasks = [make_task(cell, tmp_path) for cell in study("well", seeds=6).cells()]
    for task in tasks:
        CellFiles(tmp_path).prepare(task)

    for batch in (tasks[:4], tasks[4:]):  # the second one needs the shares of the first
        launcher.start(batch)
        ended: list[Ending] = []
        while len(ended) < len(batch):
            ended += launcher.wait(60)
        assert {ending.status for ending in ended} == {0}

    devices = [json.loads((task.directory / "facts.json").read_text())["device"] for task in tasks]
    assert devices == ["5", "7", "5", "7", "5", "7"]
