"""Which tensors hold values that are not finite: infinite, or not a number."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all values of tensors are finite; free to ask on the CPU, a wait for any other device.

    Args:
        tensors: Dense tensors on one device, of any floating or complex dtype.
    """
    # A sum is the cheapest pass over a tensor. It may overflow where no value does: that is looked into.
    if all(cmath.isfinite(tensor.sum().item()) for tensor in tensors):
        return True
    return not nonfinite_tensors(tensors).any()


@torch.no_grad()
def nonfinite_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """Find tensors with a value that is not finite, without reading from their device.

    Large values count as finite: the maximum norm, unlike the 2-norm, does not overflow.

    Args:
        tensors: P dense tensors on one device, of any floating or complex dtype.

    Returns:
        Flags ``(P,)`` of bool, on the tensors' device.
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.bool)
    # An empty tensor has no maximum.
    norms = torch._foreach_norm([t if t.numel() else t.new_zeros(1) for t in tensors], math.inf)
    return torch.stack(norms).isfinite().logical_not_()
