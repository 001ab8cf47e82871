from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_gfs.callbacks import Diagnosis
from lit_gfs.callbacks.summary import RunSummary
from lit_gfs.metrics.module_protocol import write_scalars
from lit_gfs.metrics.network_rules import DORMANT, RANK
from support.training import quiet_trainer


class Collapsing(LightningModule):
    """Logs an effective rank, one value a step, and is evaluated after each epoch of ten steps."""

    def __init__(self, ranks: list[float]) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.ranks = ranks

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_step < len(self.ranks):
            write_scalars(self.trainer, self, {RANK: self.ranks[self.global_step], "loss/q": 1.0})
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


COLLAPSE = [16.0, *[1.1] * 19]
LINE = "lit_gfs: features collapsed since step 1: the effective rank is 1.1, and was up to 16; see docs/coll"


def batches(count: int = 10) -> DataLoader[Any]:
    return DataLoader(torch.ones(count, 1), batch_size=1)  # type: ignore[arg-type]


def fit(module: LightningModule, epochs: int = 2, ckpt_path: str | None = None, **options: Any) -> Trainer:
    options = {"callbacks": [Diagnosis()], "log_every_n_steps": 1, **options}
    trainer = quiet_trainer(max_epochs=epochs, **options)
    trainer.fit(module, batches(), batches(1), ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(name="error_lines")
def _error_lines(capsys: pytest.CaptureFixture[str]) -> Any:
    def lines() -> list[str]:
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit_gfs:")]

    return lines


def test_a_finding_is_one_line_on_stderr_and_is_said_once(error_lines: Any) -> None:
    fit(Collapsing(COLLAPSE), epochs=4)

    (line,) = error_lines()
    assert line.startswith(LINE)


def test_it_is_said_after_an_evaluation_and_not_at_the_end_only(error_lines: Any) -> None:
    told: list[int] = []

    class Looking(Collapsing):
        def on_train_epoch_start(self) -> None:
            told.append(len(error_lines()))

    fit(Looking(COLLAPSE), epochs=3)

    assert told == [0, 1, 0]


def test_a_healthy_run_says_nothing(error_lines: Any) -> None:
    trainer = fit(Collapsing([16.0] * 20))

    assert error_lines() == []
    assert trainer.callbacks[0].findings() == []  # type: ignore[attr-defined]


def test_evaluating_alone_says_nothing(error_lines: Any) -> None:
    diagnosis = Diagnosis()
    for step in range(20):
        diagnosis.on_scalars(step, {DORMANT: 0.9})
    quiet_trainer(callbacks=[diagnosis]).validate(Collapsing([]), batches(1), verbose=False)

    assert error_lines() == []


def test_tensorboard_gets_a_text(tmp_path: Path, error_lines: Any) -> None:
    fit(Collapsing(COLLAPSE), logger=TensorBoardLogger(tmp_path, name=None, version="run"))

    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    tag = "diagnosis/text_summary"
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
    assert len(texts) == 2  # when it fires, and at the end
    assert texts[-1].startswith("- features collapsed since step 1:")
    assert "1 of 1 rules fired; not judged: dormant units (needs" in texts[-1]


@pytest.mark.parametrize("cut_at", [1, 2])
def test_a_resumed_run_knows_what_it_logged_and_said(tmp_path: Path, error_lines: Any, cut_at: int) -> None:
    ranks = [16.0, *[9.0] * 5, *[1.1] * 14]  # fires in the second epoch
    checkpoint = ModelCheckpoint(tmp_path, filename="saved", save_top_k=-1)
    fit(Collapsing(ranks), epochs=cut_at, callbacks=[Diagnosis(), checkpoint])
    first = error_lines()
    path = str(tmp_path / "saved.ckpt")
    trainer = fit(Collapsing(ranks), epochs=3, ckpt_path=path)

    assert (len(first), len(error_lines())) == ((0, 1) if cut_at == 1 else (1, 0))
    whole = fit(Collapsing(ranks), epochs=3)
    assert trainer.callbacks[0].findings() == whole.callbacks[0].findings() != []  # type: ignore[attr-defined]


def test_a_checkpoint_is_evaluated_without_it(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    checkpoint = ModelCheckpoint(tmp_path, filename="saved")
    fit(Collapsing(COLLAPSE), callbacks=[Diagnosis(), checkpoint])
    quiet_trainer(callbacks=[ModelCheckpoint(tmp_path)]).validate(
        Collapsing([]), batches(1), ckpt_path=str(tmp_path / "saved.ckpt"), verbose=False
    )

    assert [str(each.message) for each in recwarn if "Diagnosis" in str(each.message)] == []


def test_the_summary_has_a_row_and_no_plain_success(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Collapsing(COLLAPSE), callbacks=[Diagnosis(), RunSummary()])

    printed = capsys.readouterr().out
    assert "finished, but features collapsed\n" in printed
    assert "diagnosis        features collapsed since step 1: the effective rank is 1.1" in printed


def test_the_summary_of_a_run_that_recovered_is_a_success(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Collapsing([16.0, *[1.1] * 10, *[9.0] * 9]), callbacks=[Diagnosis(), RunSummary()])

    printed = capsys.readouterr().out
    assert "finished\n" in printed
    assert "features collapsed since step 1 until 11" in printed


def test_a_run_that_fails_is_diagnosed(error_lines: Any) -> None:
    class Failing(Collapsing):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.global_step == 9:
                raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fit(Failing(COLLAPSE))

    assert len(error_lines()) == 1
