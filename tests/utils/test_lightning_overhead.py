from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from lit_gfs.utils.lightning_overhead import Untimed, drop_empty_hooks


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
