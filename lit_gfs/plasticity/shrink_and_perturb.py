"""Shrinking of weights with fresh noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_gfs.errors import UserError, require_between
from lit_gfs.plasticity.weight_rule import Rate, WeightRule, Weights, root_mean_squares, scale_each_
from lit_gfs.utils.seeding import derive_seed


class ShrinkAndPerturb(WeightRule):
    """Shrinks weights and adds noise (Ash and Adams 2020, arXiv 1910.08475): w <- shrink w + noise s e.

    e is standard normal, and s is the root mean square of the initial weight. So the noise has the scale
    of the weight's own initializer. Without gradients, weights would converge to normal numbers with the
    root mean square s * noise / sqrt(1 - shrink^2), which is s for the default noise. A weight that starts at
    0, such as a bias, only shrinks.

    Args:
        shrink: Factor on the weights, from 0 to 1.
        noise: Factor on the noise, from 0; ``None`` stands for sqrt(1 - shrink^2).
        seed: Seed of the noise; all ranks need the same.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(self, shrink: float = 0.9999, noise: float | None = None, seed: int = 0) -> None:
        super().__init__()
        require_between(0, 1, shrink=shrink)
        if noise is not None and not 0 <= noise < math.inf:
            raise UserError(f"noise is {noise}; expected a number of at least 0, or null")
        self.shrink = shrink
        self.noise = math.sqrt(1 - shrink**2) if noise is None else noise
        self.seed = seed
        self.draws = 0
        """How often noise has been drawn; with the seed, it determines the next noise."""

    @override
    def first_sight(self, name: str, weights: Weights) -> Tensor:
        return root_mean_squares([weights[name]])[0]

    @override
    def apply(self, weights: Weights, rates: Sequence[Rate]) -> dict[str, Tensor]:
        """Shrink the weights and add noise; return the mean ratio of their size to the initial one."""
        tensors, scales = list(weights.values()), torch.stack([self.kept[name] for name in weights])
        torch._foreach_mul_(tensors, self.shrink)
        if self.noise:
            noise = self._draw(tensors)
            scale_each_(noise, self.noise * scales)
            torch._foreach_add_(tensors, noise)
        ratios = root_mean_squares(tensors) / scales
        return {"relative_size": torch.where(scales > 0, ratios, 1.0).mean()}

    def _draw(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Draw standard normal numbers with the shapes and devices of tensors."""
        seed = derive_seed("shrink_and_perturb", self.seed, self.draws)
        self.draws += 1
        generators = {
            device: torch.Generator(device).manual_seed(seed)
            for device in dict.fromkeys(each.device for each in tensors)
        }
        return [torch.empty_like(each).normal_(generator=generators[each.device]) for each in tensors]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.seed, "draws": self.draws}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.seed, self.draws = state["seed"], state["draws"]
