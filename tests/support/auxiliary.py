"""A module with features for tests of auxiliary losses, which knows nothing of reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lit_gfs.callbacks.auxiliary_loss import AuxiliaryLoss
from support.fakes import Records
from support.training import quiet_trainer, regression_batches

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


class FeatureNet(LightningModule):
    """A trunk and a head, with the attributes that callbacks read; ``extra`` adds a term by itself."""

    def __init__(
        self, make_optimizer: OptimizerFactory = sgd, extra: Callable[[Any], Tensor] | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
        self.policy_head = nn.Linear(6, 1)
        self.make_optimizer = make_optimizer
        self.extra = extra
        self.example_input_array = torch.zeros(1, 3)

    def policy_features(self, observation: Tensor) -> Tensor:
        return self.trunk(observation)

    def forward(self, x: Tensor) -> Tensor:
        return self.policy_head(self.policy_features(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        with torch.no_grad():
            self(-x)  # as for targets: nothing that a callback reads
        features = self.policy_features(x)
        loss = (self.policy_head(features) - y).square().mean()
        return loss if self.extra is None else loss + self.extra(features)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


class SmallFeatures(AuxiliaryLoss):
    """The mean square of the features."""

    def term(self, features: Tensor) -> Tensor:
        return features.square().mean()


class SmallWeights(AuxiliaryLoss):
    """The sum of all squared parameters."""

    def term(self, parameters: dict[str, list[nn.Parameter]]) -> Tensor:
        return torch.stack([p.square().sum() for layer in parameters.values() for p in layer]).sum()


def fit(
    module: LightningModule, callbacks: list[Callback], steps: int, ckpt_path: Any = None, **options: Any
) -> dict[int, dict[str, float]]:
    """Train for some optimizer steps; return what was logged, by step."""
    records = Records()
    defaults = {"max_steps": steps, "callbacks": callbacks, "logger": records, "log_every_n_steps": 5}
    batches = regression_batches(10 * options.get("accumulate_grad_batches", 1))
    quiet_trainer(**{**defaults, **options}).fit(module, batches, ckpt_path=ckpt_path)
    return records.rows
