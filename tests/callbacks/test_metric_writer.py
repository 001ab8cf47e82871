from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_gfs.agents import DQN
from lit_gfs.callbacks import metric_writer
from lit_gfs.callbacks.metric_writer import MetricWriter
from lit_gfs.metrics.recorded_means import RecordedMeans
from lit_gfs.runs.exact_resume import ExactResume
from support.fakes import Records
from support.training import MakeTrainer, replay_data


class Regression(LightningModule):
    """A module of nobody's base class that records the numbers of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.recorded = RecordedMeans()

    def current_values(self, means: Mapping[str, float]) -> dict[str, float]:
        return {"twice": 2 * means["batch"]}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.recorded.add({"batch": batch})
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def numbers(count: int) -> DataLoader[Tensor]:
    return DataLoader(torch.arange(float(count)).unsqueeze(1), batch_size=1)  # type: ignore[arg-type]


def test_means_are_written_on_log_steps_and_at_the_end(make_trainer: MakeTrainer) -> None:
    records = Records()
    trainer = make_trainer(max_epochs=1, logger=records, log_every_n_steps=4, callbacks=[MetricWriter()])

    trainer.fit(Regression(), numbers(10))

    written = {step: row["batch"] for step, row in records.rows.items() if "batch" in row}
    assert written == {4: 1.5, 8: 5.5, 10: 8.5}
    assert {step: row["twice"] for step, row in records.rows.items() if "twice" in row} == {
        step: 2 * mean for step, mean in written.items()
    }


def test_accumulated_batches_are_written_once_a_step(make_trainer: MakeTrainer) -> None:
    records = Records()
    trainer = make_trainer(
        max_epochs=1,
        logger=records,
        log_every_n_steps=1,
        accumulate_grad_batches=2,
        callbacks=[MetricWriter()],
    )

    trainer.fit(Regression(), numbers(4))

    assert {step: row["batch"] for step, row in records.rows.items() if "batch" in row} == {1: 0.5, 2: 2.5}


def test_the_speed_leaves_evaluations_out(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(metric_writer.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Regression, "on_train_batch_start", lambda *_: now.__setitem__(0, now[0] + 0.5))
    monkeypatch.setattr(Regression, "on_validation_batch_start", lambda *_: now.__setitem__(0, now[0] + 60))
    records = Records()
    trainer = make_trainer(max_epochs=2, logger=records, log_every_n_steps=4, callbacks=[MetricWriter()])

    trainer.fit(Regression(), numbers(6), numbers(1))

    # The second stretch of four steps has an evaluation in its middle.
    speeds = [row["time/steps_per_second"] for row in records.rows.values() if "time/steps_per_second" in row]
    assert speeds == [2.0, 2.0, 2.0]


def test_a_resumed_run_writes_the_means_of_the_whole_stretch(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    class Stop(MetricWriter):
        """A writer whose run stops after three batches, in the middle of a stretch of four."""

        def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
            super().on_train_batch_end(trainer, *others)
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "third.ckpt")

    arguments: dict[str, Any] = {"max_epochs": 1, "log_every_n_steps": 4}
    make_trainer(**arguments, callbacks=[Stop()]).fit(Regression(), numbers(10))
    records = Records()
    resumed = make_trainer(**arguments, logger=records, callbacks=[MetricWriter()])

    resumed.fit(Regression(), numbers(10), ckpt_path=tmp_path / "third.ckpt")

    # Lightning resumes a plain loader from its beginning: the fourth batch is number 0 again.
    assert records.rows[4]["batch"] == pytest.approx((0 + 1 + 2 + 0) / 4)


@pytest.mark.usefixtures("counting_envs")
def test_agents_bring_the_writer_along_once(make_trainer: MakeTrainer) -> None:
    data = replay_data(total_steps=40)
    agent, trainer = DQN(data.env_spec), make_trainer()

    trainer.fit(agent, datamodule=data)
    trainer.validate(agent, datamodule=data, verbose=False)

    kinds = [type(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    assert kinds.count(MetricWriter) == 1
    assert kinds.count(ExactResume) == 1
