"""A small deep module whose units can be reset; it knows nothing of reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from support.intervened import adam

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def sgd(rate: float) -> OptimizerFactory:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9)


class Chain(LightningModule):
    """Three linear layers for the sum of three numbers; the second hidden layer has a normalization."""

    def __init__(self, make_optimizer: OptimizerFactory = adam) -> None:
        super().__init__()
        torch.manual_seed(5)  # all units of the first layer are active
        self.first, self.second, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.norm = nn.LayerNorm(8)
        self.activations = nn.ModuleList([nn.ReLU(), nn.LeakyReLU(0.3)])
        self.example_input_array = torch.zeros(1, 3)
        self.make_optimizer = make_optimizer

    def kill(self, *units: int) -> Chain:
        """Shut units of the first layer for all inputs."""
        with torch.no_grad():
            self.first.bias[list(units)] = -100.0
        return self

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activations[0](self.first(x))
        return self.head(self.activations[1](self.norm(self.second(hidden))))

    def probe_batch(self) -> Tensor:
        return torch.randn(32, 3, generator=torch.Generator().manual_seed(2)).to(self.device)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return (self(x) - y).square().mean()

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(list(self.parameters()))
