"""A module for tests of gradient interventions; it knows nothing of reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lit_gfs.callbacks import GradientNormalization, TemporalGradientClipping
from support.fakes import Records
from support.training import quiet_trainer, regression_batches

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
INTERVENTIONS: list[Callable[..., Callback]] = [
    lambda **arguments: TemporalGradientClipping(**{"warmup": 3, "z_threshold": 1.0, **arguments}),
    GradientNormalization,
]
both_interventions = pytest.mark.parametrize("make", INTERVENTIONS, ids=["clipping", "normalization"])


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


class Net(LightningModule):
    """Three trained layers, a frozen one, one that is used every second step, and a shared one."""

    def __init__(self, make_optimizer: OptimizerFactory = adam) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.shared = nn.Linear(8, 8)
        self.again = self.shared
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.sometimes = nn.Linear(8, 8)
        self.last = nn.Linear(8, 1)
        self.make_optimizer = make_optimizer
        self.poisoned: dict[int, float] = {}

    def forward(self, x: Tensor, use_all: bool = True) -> Tensor:
        hidden = self.again(torch.relu(self.shared(torch.relu(self.first(x)))))
        if use_all:
            hidden = hidden + self.sometimes(hidden)
        return self.last(self.frozen(torch.relu(hidden)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return (self(x, use_all=batch_idx % 2 == 0) - y).square().mean()

    def on_after_backward(self) -> None:
        if self.global_step in self.poisoned:
            assert self.shared.weight.grad is not None
            self.shared.weight.grad[0, 0] = self.poisoned[self.global_step]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer([p for p in self.parameters() if p.requires_grad])


def fit(
    module: LightningModule, callbacks: list[Callback], steps: int, ckpt_path: Any = None, **options: Any
) -> dict[int, dict[str, float]]:
    records = Records()
    defaults = {"max_steps": steps, "callbacks": callbacks, "logger": records, "log_every_n_steps": 5}
    batches = regression_batches(10 * options.get("accumulate_grad_batches", 1))
    quiet_trainer(**{**defaults, **options}).fit(module, batches, ckpt_path=ckpt_path)
    return records.rows


def make_net(*arguments: Any) -> Net:
    torch.manual_seed(0)
    return Net(*arguments)
