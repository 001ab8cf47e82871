"""Clipping of weights to the range of their initial values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_gfs.errors import require_above
from lit_gfs.networks.layers import as_matrix
from lit_gfs.plasticity.weight_rule import (
    Rate,
    WeightRule,
    Weights,
    layer_of,
    norms,
    root_mean_squares,
)


class WeightClipping(WeightRule):
    """Clips weights to kappa times the bound of their initial distribution (Elsayed et al. 2024).

    In arXiv 2407.01704 a layer starts with uniform numbers from [-s, s], weights and biases alike, and
    every step ends with w <- clip(w, -kappa s, kappa s). Here s is sqrt(3) times the root mean square of the
    layer's initial matrix. For uniform numbers that is their bound, and it serves other distributions too,
    such as orthogonal matrices. A layer whose matrix starts at 0 has PyTorch's bound, 1 / sqrt(fan_in).
    Layers without a matrix are left alone.

    Args:
        kappa: The multiple of the initial bound, above 0.

    Raises:
        UserError: If ``kappa`` is out of range.
    """

    def __init__(self, kappa: float = 1.0) -> None:
        super().__init__()
        require_above(0, kappa=kappa)
        self.kappa = kappa
        self._limits: dict[str, float] = {}

    @override
    def first_sight(self, name: str, weights: Weights) -> Tensor:
        """Return the bound s of the weight's layer, ``()`` on the CPU; infinite without a matrix."""
        layer = layer_of(name)
        matrices = [each for other, each in weights.items() if layer_of(other) == layer and each.ndim >= 2]
        if not matrices:
            return torch.tensor(math.inf)
        bound = math.sqrt(3) * root_mean_squares(matrices)[0].cpu()
        return bound if bound > 0 else torch.tensor(as_matrix(matrices[0]).shape[1] ** -0.5)

    @override
    def apply(self, weights: Weights, rates: Sequence[Rate]) -> dict[str, Tensor]:
        """Clip the weights; return the share of clipped tensors, and the largest excess over a limit."""
        tensors = list(weights.values())
        limits = [self._limit(name) for name in weights]
        excess = norms(tensors, math.inf, limits)
        if all(each.is_cpu for each in tensors):
            for tensor, limit in zip(tensors, limits, strict=True):
                tensor.clamp_(-limit, limit)  # one pass instead of two
        else:
            torch._foreach_clamp_max_(tensors, limits)
            torch._foreach_clamp_min_(tensors, [-limit for limit in limits])
        return {"clipped_tensors": (excess > 1).float().mean(), "excess": excess.max()}

    def _limit(self, name: str) -> float:
        if name not in self._limits:
            self._limits[name] = self.kappa * float(self.kept[name])  # on the CPU, so nothing waits
        return self._limits[name]

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._limits = {}
