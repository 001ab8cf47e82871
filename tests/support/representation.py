"""What the monitor of representations is held against: the same numbers by NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_gfs.callbacks.representation import RepresentationMonitor
from support.fakes import Records
from support.training import MakeTrainer

Rows = dict[int, dict[str, float]]

DORMANT = "representation/dormant/"
CHURN = ("policy/churn", "policy/churn_representation", "policy/churn_head")


def layers_in(row: dict[str, float]) -> list[str]:
    return [tag.removeprefix(DORMANT) for tag in row if tag.startswith(DORMANT)]


def dormancy(activations: Tensor, tau: float = 0.025) -> np.ndarray:
    """Which units are dormant, by NumPy, ``(units,)``."""
    values = np.abs(activations.detach().double().numpy())
    means = values.mean(axis=tuple(axis for axis in range(values.ndim) if axis != 1))
    return means <= tau * means.mean()


def ranks(features: Tensor) -> tuple[float, float]:
    """SRank and effective rank, by NumPy."""
    values = np.linalg.svd(features.detach().double().numpy(), compute_uv=False)
    shares = values / values.sum()
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    return float(np.argmax(np.cumsum(shares) >= 0.99) + 1), math.exp(entropy)


def assert_no_hooks(module: nn.Module) -> None:
    for child in module.modules():
        assert not child._forward_hooks
        assert not child._forward_pre_hooks


def observations(count: int, size: int = 8) -> DataLoader:
    x = torch.randn(count * size, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x), batch_size=size)


def fit(
    module: LightningModule,
    monitor: RepresentationMonitor | None,
    make_trainer: MakeTrainer,
    steps: int = 4,
    **options: Any,
) -> Rows:
    records = Records("representation/srank")
    per_step = options.get("accumulate_grad_batches", 1)
    callbacks = [*([] if monitor is None else [monitor]), *options.pop("callbacks", [])]
    trainer = make_trainer(**{"max_epochs": 1, "callbacks": callbacks, "logger": records, **options})
    torch.manual_seed(3)
    trainer.fit(module, observations(steps * per_step))
    assert_no_hooks(module)
    return records.rows


class NotFirst(Callback):
    """Lets a Trainer take its process for another than the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.monkeypatch.setattr(type(trainer), "is_global_zero", False)
