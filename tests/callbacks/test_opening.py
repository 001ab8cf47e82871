from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lit_gfs.callbacks.opening import RunOpening
from lit_gfs.callbacks.progress import StepProgressBar
from lit_gfs.networks import ResidualTrunk
from support.accelerator import ACCELERATOR
from support.training import quiet_trainer, regression_batches


class Regression(LightningModule):
    """Three weights and a bias that train, and three that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.frozen = nn.Linear(3, 1, bias=False).requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.layer(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class WithTrunk(Regression):
    """The same with a trunk of six layers, one unit each but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = ResidualTrunk(3, depth=6, width=5)


def lines(capsys: pytest.CaptureFixture[str], *callbacks: Any, **options: Any) -> list[str]:
    module = options.pop("module", None) or Regression()
    trainer = quiet_trainer(callbacks=list(callbacks), max_epochs=1, **options)
    trainer.fit(module, regression_batches(2))
    return capsys.readouterr().out.splitlines()


def test_five_lines_about_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = CSVLogger(tmp_path, name="regression", version="first")
    opening = RunOpening(["path_init", "nan_guard"], seed=7)

    told = lines(capsys, opening, logger=logger, accelerator="cpu")

    assert told == [
        f"directory  {tmp_path / 'regression' / 'first'}",
        "device     cpu, precision 32-true",
        "network    4 trained parameters",
        "gfs        path_init, nan_guard",
        "seed       7",
    ]


def test_what_is_not_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    told = dict(line.split("  ", 1) for line in lines(capsys, RunOpening()))

    assert {name: told[name].strip() for name in ("directory", "gfs", "seed")} == {
        "directory": "none",
        "gfs": "none",
        "seed": "none",
    }


def test_a_trunk_is_told_by_its_layers_and_units(capsys: pytest.CaptureFixture[str]) -> None:
    module = WithTrunk()
    count = 4 + sum(parameter.numel() for parameter in module.trunk.parameters())

    told = lines(capsys, RunOpening(), module=module)

    assert told[2] == f"network    ResidualTrunk of 6 layers x 5 units, {count} trained parameters"


def test_precision_and_the_directory_of_checkpoints(
    empty_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ModelCheckpoint(dirpath="kept")

    told = lines(capsys, RunOpening(), kept, precision="bf16-mixed")

    assert told[0] == "directory  kept"
    assert told[1].endswith("precision bf16-mixed")


def test_it_comes_before_the_progress_bar_and_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = quiet_trainer(
        callbacks=[RunOpening(seed=0), StepProgressBar()], max_epochs=2, enable_progress_bar=True
    )
    trainer.fit(Regression(), regression_batches(2))

    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told[:5]] == ["directory", "device", "network", "gfs", "seed"]
    assert " | " in told[5]
    assert sum(line.startswith("seed ") for line in told) == 1


def test_a_remark_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    quiet_trainer(callbacks=[RunOpening(remark="a replaces b")], max_epochs=1).fit(
        Regression(), regression_batches(1)
    )

    ended = capsys.readouterr()
    assert ended.err.count("lit_gfs: a replaces b\n") == 1
    assert "replaces" not in ended.out


def test_other_processes_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))

    assert lines(capsys, RunOpening(remark="a replaces b")) == []
    assert "replaces" not in capsys.readouterr().err


@pytest.mark.skipif(ACCELERATOR != "cuda", reason="tells a GPU by its name")
def test_a_gpu_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    told = lines(capsys, RunOpening())

    assert told[1] == f"device     {torch.cuda.get_device_name()}, precision 32-true"
