"""The scores of a run and the row of its hyperparameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gfs.callbacks.run_card import RunCard
from lit_gfs.main import main
from lit_gfs.metrics.module_protocol import write_scalars
from support.event_files import read_scalars
from support.training import quiet_trainer, regression_batches


class Scored(BoringModel):
    """Has a score after each of its batches."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.scores = scores

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0]).sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        scores = {"eval/episode_return": self.scores[self.trainer.global_step - 1], "other": 0.0}
        write_scalars(self.trainer, self, scores)


def fit(module: LightningModule, directory: Path, steps: int, ckpt_path: Path | None = None) -> None:
    logger = TensorBoardLogger(directory, name="", version="", default_hp_metric=False)
    trainer = quiet_trainer(max_steps=steps, logger=logger, callbacks=[RunCard("gfs", "about it")])
    trainer.fit(module, regression_batches(5), ckpt_path=ckpt_path)
    trainer.save_checkpoint(directory / "last.ckpt")


def test_last_and_best_score(tmp_path: Path) -> None:
    fit(Scored([2.0, 1.0, 4.0]), tmp_path, 3)

    scalars = read_scalars(tmp_path)
    assert scalars["score/last"] == [(1, 2), (2, 1), (3, 4)]
    assert scalars["score/best"] == [(1, 2), (2, 2), (3, 4)]


def test_a_resumed_run_keeps_its_best_score(tmp_path: Path) -> None:
    scores = [9.0, 1.0, 2.0]
    fit(Scored(scores), tmp_path / "a", 1)
    fit(Scored(scores), tmp_path / "b", 3, tmp_path / "a" / "last.ckpt")

    assert read_scalars(tmp_path / "b")["score/best"] == [(2, 9), (3, 9)]


def test_the_table_of_hyperparameters_has_a_row(tmp_path: Path) -> None:
    fit(Scored([2.0]), tmp_path, 1)

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.PluginTagToContent("hparams").keys() == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    start = str(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    assert "method" in start
    assert "gfs" in start
    assert b"about it" in events.Tensors("run/text_summary")[0].tensor_proto.string_val[0]


def test_runs_have_names_in_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = "--data.num_envs=2 --data.total_steps=60 --data.learning_starts=40 --data.batch_size=8"
    quick = [*small.split(), "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    main(["fit", "--config=quickstart", *quick])
    main(["fit", "--config=quickstart", "--config=recipes/gfs", "--seed_everything=4", *quick])
    main(["fit", "--config=quickstart", "--run.version=mine", *quick])
    main(["fit", "--ckpt_path=runs/dqn_CartPole-v1/version_1/last.ckpt", "--data.total_steps=80", *quick[3:]])

    events = {
        path.parent.relative_to("runs/dqn_CartPole-v1").as_posix()
        for path in Path("runs").rglob("*tfevents*")
    }
    assert events == {"version_0/baseline_2x256_s0", "version_1/gfs_2x256_s4", "mine"}
    assert Path("runs/dqn_CartPole-v1/version_1/config.yaml").is_file()
