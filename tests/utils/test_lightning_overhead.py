from __future__ import annotations

import inspect
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint

from lit_gfs.utils.lightning_overhead import (
    LeanModule,
    Untimed,
    drop_empty_hooks,
    remember_batch_hooks,
)


class Counter(Callback):
    """Counts batches in one hook, and inherits all others."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.batches += 1


class Heir(Counter):
    """Inherits a hook that does something."""


class OneWeight(LightningModule):
    """Learns one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_hooks_that_do_something_are_still_called(make_trainer: Any) -> None:
    callback = Heir()
    drop_empty_hooks([callback])

    make_trainer(max_epochs=1, callbacks=[callback], profiler=Untimed()).fit(OneWeight(), [0, 0, 0])

    assert callback.batches == 3
    noted: list[int] = []
    given = LambdaCallback(on_train_batch_end=lambda *arguments: noted.append(1))
    drop_empty_hooks([given])
    make_trainer(max_epochs=1, callbacks=[given], profiler=Untimed()).fit(OneWeight(), [0, 0])
    assert noted == [1, 1]
    assert callback.on_before_optimizer_step is None
    assert callable(callback.on_train_batch_end)
    assert callable(callback.on_train_start)
    assert callable(Callback().on_before_optimizer_step)


def test_nothing_is_measured_around_a_hook() -> None:
    profiler = Untimed()
    with profiler.profile("outer"), profiler.profile("inner"):
        profiler.start("action")
        profiler.stop("action")
    assert profiler.profile("first") is profiler.profile("second")
    assert profiler.summary() == ""


def test_an_idle_checkpoint_is_skipped_at_the_end_of_a_batch(tmp_path: Path) -> None:
    idle, by_steps, by_time = checkpoints = [
        ModelCheckpoint(tmp_path, **options)
        for options in ({}, {"every_n_train_steps": 2}, {"train_time_interval": timedelta(seconds=9)})
    ]
    drop_empty_hooks(checkpoints)
    assert idle.on_train_batch_end is None
    assert callable(by_steps.on_train_batch_end)
    assert callable(by_time.on_train_batch_end)


class Lean(LeanModule):
    """Learns one number; two hooks do something."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: list[Any] = []

    def on_after_backward(self) -> None:
        self.seen.append("after")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch + 1

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.seen.append((batch, number))
        return self.weight.sum()

    def on_fit_start(self) -> None:
        remember_batch_hooks(self.trainer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithoutNumber(Lean):
    """Takes no number of the batch."""

    def training_step(self, batch: Any) -> torch.Tensor:  # type: ignore[override]
        return super().training_step(batch, -1)


@pytest.mark.parametrize(("kind", "numbers"), [(Lean, [0, 1]), (WithoutNumber, [-1, -1])])
def test_a_lean_module_gets_all_its_calls(kind: type[Lean], numbers: list[int], make_trainer: Any) -> None:
    module = kind()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, [10, 20])
    first, second = numbers
    assert module.seen == [(11, first), "after", (21, second), "after"]
    assert module.on_before_backward is None
    selector = trainer._data_connector._datahook_selector
    assert selector.get_instance.cache_info().hits > 0
    # Python's own signature, and so Lightning's, is the one that was made with the class.
    assert inspect.signature(module.training_step) == inspect.signature(kind.training_step).replace(
        parameters=list(inspect.signature(kind.training_step).parameters.values())[1:]
    )
    assert vars(kind.training_step)["__signature__"] is inspect.signature(kind.training_step)
