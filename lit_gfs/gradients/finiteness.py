"""Search of tensors for non-finite values (infinity or NaN)."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether all values of tensors are finite; synchronizes with any device other than the CPU.

    Args:
        tensors: Dense tensors on one device, of any floating or complex dtype.
    """
    # A sum is the cheapest pass over a tensor. It can overflow although all values are finite; only then is
    # the exact check needed.
    if all(cmath.isfinite(tensor.sum().item()) for tensor in tensors):
        return True
    return not nonfinite_tensors(tensors).any()


@torch.no_grad()
def nonfinite_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """Find the tensors with a non-finite value, without synchronizing with their device.

    Large values count as finite: the maximum norm does not overflow, unlike the 2-norm.

    Args:
        tensors: P dense tensors on one device, of any floating or complex dtype.

    Returns:
        Boolean flags ``(P,)``, on the tensors' device.
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.bool)
    # An empty tensor has no maximum.
    norms = torch._foreach_norm([t if t.numel() else t.new_zeros(1) for t in tensors], math.inf)
    return (torch.stack(norms) < math.inf).logical_not_()  # NaN is not less either
