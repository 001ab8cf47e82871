"""Decoupled decay of weights towards their initial values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lit_gfs.errors import UserError
from lit_gfs.plasticity.weight_rule import Rate, WeightRule, Weights


class PullToInit(WeightRule):
    """Pulls weights towards their initial values: w <- w - rate * strength * (w - w_0).

    This is regenerative regularization (Kumar et al. 2023, "Maintaining plasticity in continual learning via
    regenerative regularization", arXiv 2308.11958), decoupled from the gradient as in AdamW (Loshchilov and
    Hutter 2019): an adaptive optimizer does not rescale the pull. The rate is that of the weight's parameter
    group, so schedules and factors of layers apply to the pull too.

    Args:
        strength: Strength of the pull, in units of 1 / rate, from 0.

    Raises:
        UserError: If ``strength`` is out of range.
    """

    def __init__(self, strength: float = 0.01) -> None:
        super().__init__()
        if not 0 <= strength < math.inf:
            raise UserError(f"strength is {strength}; expected a number of at least 0")
        self.strength = strength

    @override
    def first_sight(self, name: str, weights: Weights) -> Tensor:
        return weights[name].detach().clone()

    @override
    def apply(self, weights: Weights, rates: Sequence[Rate]) -> dict[str, Tensor]:
        """Pull the weights; return the mean share of the distance that this step removes."""
        tensors = list(weights.values())
        initial = [self.kept[name] for name in weights]
        shares = [rate * self.strength for rate in rates]
        numbers = [share for share in shares if not isinstance(share, Tensor)]
        if len(numbers) == len(shares):
            torch._foreach_lerp_(tensors, initial, numbers)
            return {"share": torch.tensor(sum(numbers) / len(numbers))}
        # Rates on the device are not read.
        for tensor, start, share in zip(tensors, initial, shares, strict=True):
            tensor.lerp_(start, torch.as_tensor(share, dtype=tensor.dtype, device=tensor.device))
        return {"share": torch.stack([torch.as_tensor(s, device=tensors[0].device) for s in shares]).mean()}
