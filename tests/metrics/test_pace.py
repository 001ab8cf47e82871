"""A monitor that paces itself measures about 200 times in a run."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import LightningDataModule
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_gfs.callbacks import CurvatureMonitor, GradientFlowMonitor, RepresentationMonitor
from lit_gfs.datamodules import LabelShuffleDataModule
from lit_gfs.metrics.pace import Pace, interval_in, planned_steps
from support.training import quiet_trainer, replay_data, rollout_data


class Planned(LightningDataModule):
    """Knows how many batches the run has."""

    planned_batches = 30_000


def trainer_of(datamodule: LightningDataModule | None = None, **options: Any) -> Any:
    trainer: Any = quiet_trainer(**options)
    trainer.datamodule = datamodule
    return trainer


@pytest.mark.parametrize(
    ("every", "least", "options", "interval"),
    [
        (7, 10, {}, 7),
        ("auto", 10, {}, 150),
        ("auto", 500, {}, 500),
        ("auto", 10, {"accumulate_grad_batches": 3}, 50),
        ("auto", 10, {"max_steps": 4_000}, 20),
    ],
)
def test_the_interval_follows_the_length_of_the_run(
    every: Any, least: int, options: dict[str, Any], interval: int
) -> None:
    assert interval_in(trainer_of(Planned(), **options), every, Pace(200, least, 1)) == interval


def test_a_run_without_a_known_end_has_a_fixed_interval() -> None:
    class Endless:
        estimated_stepping_batches = float("inf")

    endless: Any = Endless()
    assert planned_steps(endless) is None
    assert interval_in(endless, "auto", Pace(200, 10, 100)) == 100


@pytest.mark.usefixtures("counting_envs")
def test_datamodules_know_their_batches() -> None:
    assert replay_data(total_steps=1_020).planned_batches == 500
    assert rollout_data(total_steps=60).planned_batches == 16  # the last rollout is shorter, and counts


def test_epochs_have_a_known_length() -> None:
    data = LabelShuffleDataModule(samples=64, batch_size=16, epochs=5)

    class Noting(BoringModel):
        steps: int | None = None

        def on_train_start(self) -> None:
            self.steps = planned_steps(self.trainer)
            self.trainer.should_stop = True

    module = Noting()
    quiet_trainer(max_epochs=data.epochs).fit(module, data.train_dataloader())
    assert module.steps == 20


@pytest.mark.parametrize("monitor", [GradientFlowMonitor, RepresentationMonitor, CurvatureMonitor])
def test_monitors_pace_themselves_by_default(monitor: Any) -> None:
    assert monitor().every_n_steps == "auto"
