"""Factors on the outputs of residual branches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

BranchFactor = Literal["none", "inverse_sqrt", "inverse", "trained"]
"""Factor on the output of each of L branches: 1, L^-1/2, L^-1, or a trained number that starts at 0."""


class ConstantFactor(nn.Module):
    """Multiplies by the constant L^-exponent.

    Args:
        branches: L, the number of branches of the network.
        exponent: 1/2 or 1.
    """

    def __init__(self, branches: int, exponent: float) -> None:
        super().__init__()
        self.branches = branches
        self.exponent = exponent
        self.value = branches**-exponent

    def forward(self, residual: Tensor) -> Tensor:
        """Scale a residual of any shape."""
        return self.value * residual

    def extra_repr(self) -> str:
        """Show the constant."""
        return f"{self.branches}^-{self.exponent:g}"


class TrainedFactor(nn.Module):
    """Multiplies by a trained number that starts at 0 (ReZero, Bachlechner et al. 2020, arXiv 2003.04887).

    It is a module of its own, so it counts as a layer: what normalizes or measures the gradients of layers
    treats it apart from the matrices of its branch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, residual: Tensor) -> Tensor:
        """Scale a residual of any shape."""
        return self.value * residual


def make_branch_factor(kind: BranchFactor, branches: int) -> nn.Module:
    """Build the factor of one branch.

    Constant factors keep the size of the stream at any depth: with L^-1/2 the variance of L independent
    residuals stays bounded, and with L^-1 so does the sum of aligned ones (depth-muP, Yang et al. 2023, arXiv
    2310.02244; CompleteP, Dey et al. 2025, arXiv 2505.01618).

    Args:
        kind: The kind of factor; ``none`` is the identity.
        branches: L, the number of branches of the network.
    """
    if kind == "trained":
        return TrainedFactor()
    if kind == "none":
        return nn.Identity()
    return ConstantFactor(branches, 0.5 if kind == "inverse_sqrt" else 1.0)
