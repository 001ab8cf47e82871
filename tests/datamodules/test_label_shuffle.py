from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lit_gfs.agents.classifier import Classifier
from lit_gfs.datamodules import LabelShuffleDataModule
from lit_gfs.datamodules.image_sets import load_digits
from lit_gfs.errors import UserError
from lit_gfs.networks import PlainTrunk
from support.training import MakeTrainer


def make_data(**arguments: Any) -> LabelShuffleDataModule:
    defaults: dict[str, Any] = {"samples": 64, "batch_size": 16, "shuffle_every": 2, "epochs": 6, "seed": 3}
    return LabelShuffleDataModule(**{**defaults, **arguments})


class Recorder(Callback):
    """Keeps what training saw, and when labels were announced to change."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.announced: list[tuple[int, str]] = []
        self.evaluated_after: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch)

    def on_objective_shift(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
        self.announced.append((trainer.global_step, reason))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluated_after.append(trainer.current_epoch + 1)


def test_a_run_lasts_its_epochs_and_announces_each_shuffle_once_before_the_first_step(
    make_trainer: MakeTrainer,
) -> None:
    data, recorder = make_data(), Recorder()
    trainer = make_trainer(callbacks=[recorder])

    trainer.fit(Classifier(data.env_spec), data)

    assert trainer.current_epoch == 6
    assert trainer.global_step == 6 * 4
    assert recorder.announced == [(8, "label_shuffle"), (16, "label_shuffle")]
    digits, true = load_digits()
    known = {tuple(image.tolist()): int(label) for image, label in zip(digits[:64], true[:64], strict=True)}
    agree = [
        sum(known[tuple(image.tolist())] == int(label) for image, label in zip(*batch, strict=True)) / 16
        for batch in recorder.batches
    ]
    assert agree[:8] == [1.0] * 8
    assert max(agree[8:]) < 0.6


def test_a_run_with_dropout_resumes_exactly(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    def fit(name: str, checkpoint: Path | None) -> Classifier:
        data = make_data()
        torch.manual_seed(0)
        model = Classifier(data.env_spec, trunk=partial(PlainTrunk, depth=2, width=16))
        model.network.trunk = nn.Sequential(model.network.trunk, nn.Dropout(0.5))
        saver = ModelCheckpoint(tmp_path / name, every_n_train_steps=5, save_top_k=-1, filename="{step}")
        torch.manual_seed(1 if checkpoint is None else 2)
        trainer = make_trainer(callbacks=[saver], enable_checkpointing=True)
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        return model

    whole = fit("whole", None)
    resumed = fit("resumed", tmp_path / "whole/step=10.ckpt")

    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_another_number_of_processes_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    def fit(epochs: int, checkpoint: Path | None = None) -> None:
        data = make_data(epochs=epochs)
        saver = ModelCheckpoint(tmp_path, filename="one")
        trainer = make_trainer(callbacks=[saver])
        trainer.fit(Classifier(data.env_spec), data, ckpt_path=checkpoint, weights_only=True)

    fit(1)
    content = torch.load(tmp_path / "one.ckpt", weights_only=True)
    content["LabelShuffleDataModule"]["generators"] *= 2  # as if two processes had written it
    torch.save(content, tmp_path / "two.ckpt")

    with pytest.raises(
        UserError, match=r"world_size is 1, but the checkpoint was written with .* 2; expected"
    ):
        fit(2, tmp_path / "two.ckpt")
    fit(2, tmp_path / "one.ckpt")


@pytest.mark.parametrize(
    ("eval_every", "shuffle_every", "expected"),
    [
        (1, 2, [1, 2, 3, 4, 5, 6]),
        (2, 3, [2, 3, 4, 6]),
        (4, 2, [2, 4, 6]),
        (4, None, [4, 6]),
        (100, None, [6]),
    ],
)
def test_evaluation_comes_when_due_before_a_shuffle_and_at_the_end(
    make_trainer: MakeTrainer, eval_every: int, shuffle_every: int | None, expected: list[int]
) -> None:
    data, recorder = make_data(eval_every=eval_every, shuffle_every=shuffle_every), Recorder()

    make_trainer(callbacks=[recorder]).fit(Classifier(data.env_spec), data)

    assert recorder.evaluated_after == expected


@pytest.mark.parametrize("step", [6, 8, 10], ids=["mid-epoch", "before a shuffle", "after a shuffle"])
def test_a_resumed_run_repeats_the_uninterrupted_one(
    step: int, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def fit(name: str, checkpoint: Path | None, seed: int) -> tuple[Classifier, Recorder]:
        torch.manual_seed(seed)
        data, recorder = make_data(), Recorder()
        model = Classifier(data.env_spec)
        saver = ModelCheckpoint(tmp_path / name, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer = make_trainer(callbacks=[recorder, saver], enable_checkpointing=True)
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        return model, recorder

    whole, recorded = fit("whole", None, seed=0)
    resumed, recorded_again = fit("resumed", tmp_path / f"whole/step={step}.ckpt", seed=1)

    assert len(recorded.batches) == 24
    assert len(recorded_again.batches) == 24 - step
    for got, want in zip(recorded_again.batches, recorded.batches[step:], strict=True):
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert recorded_again.announced == [each for each in recorded.announced if each[0] >= step]


def test_the_same_datamodule_starts_anew_with_another_trainer(make_trainer: MakeTrainer) -> None:
    data, recorders = make_data(), [Recorder(), Recorder()]

    for recorder in recorders:
        make_trainer(callbacks=[recorder]).fit(Classifier(data.env_spec), data)

    first, second = ([labels for _, labels in recorder.batches] for recorder in recorders)
    assert len(first) == len(second) == 24
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_any_lightning_module_can_learn_from_it(make_trainer: MakeTrainer) -> None:
    class Linear(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            images, labels = batch
            return torch.nn.functional.cross_entropy(self.layer(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    data, model = make_data(), Linear()
    before = model.layer.weight.detach().clone()

    make_trainer().fit(model, data)

    assert not torch.equal(before, model.layer.weight)


# -- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["samples", "batch_size", "shuffle_every", "epochs", "eval_every"])
def test_counts_must_be_positive(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0; expected a whole number of at least 1"):
        make_data(**{name: 0})


def test_a_batch_of_more_than_all_images_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size is 65; expected at most the 64 images"):
        make_data(batch_size=65)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UserError, match="seed is -1; expected"):
        make_data(seed=-1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_check_interval": 2}, "val_check_interval is 2; expected 1.0, as data.eval_every"),
        ({"val_check_interval": 1}, "val_check_interval is 1; expected 1.0"),
        ({"precision": "bf16-true"}, "precision is bf16-true; expected"),
        ({"limit_train_batches": 2}, "limit_train_batches is 2; expected none, as labels"),
        ({"overfit_batches": 1}, "overfit_batches is 1; expected none, as labels"),
    ],
)
def test_trainer_options_that_it_cannot_serve_are_refused(
    arguments: dict[str, Any], message: str, make_trainer: MakeTrainer
) -> None:
    data = make_data()

    with pytest.raises(UserError, match=message):
        make_trainer(**arguments).fit(Classifier(data.env_spec), data)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_precision_is_checked_without_training_too(stage: str, make_trainer: MakeTrainer) -> None:
    data = make_data()

    with pytest.raises(UserError, match="precision is bf16-true; expected"):
        getattr(make_trainer(precision="bf16-true"), stage)(Classifier(data.env_spec), data)
