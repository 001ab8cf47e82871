"""Projection of weights to their initial norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lit_gfs.plasticity.weight_rule import Rate, WeightRule, Weights, norms, scale_each_


class NormProjection(WeightRule):
    """Rescales each weight to the norm that it had before the first step: w <- w ||w_0|| / ||w||.

    This is the projection of Normalize-and-Project (Lyle et al. 2024, arXiv 2407.01800). Behind a
    normalization, the norm of a weight changes only its effective learning rate, rate / ||w||^2. A norm that
    grows lets this rate decay; the projection keeps it. A weight that is 0 now, or was at first, is left
    alone.
    """

    @override
    def first_sight(self, name: str, weights: Weights) -> Tensor:
        return norms([weights[name]])[0]

    @override
    def apply(self, weights: Weights, rates: Sequence[Rate]) -> dict[str, Tensor]:
        """Rescale the weights; return the mean and the smallest factor."""
        tensors = list(weights.values())
        wanted = torch.stack([self.kept[name] for name in weights])
        present = norms(tensors)
        factors = torch.where((present > 0) & (wanted > 0), wanted / present, 1.0)
        scale_each_(tensors, factors)
        return {"scale": factors.mean(), "smallest_scale": factors.min()}
