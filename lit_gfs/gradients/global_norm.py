"""Clipping of the joint norm of all gradients."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def clip_global_norm(gradients: list[Tensor], max_norm: float) -> None:
    """Shorten gradients in place if their joint 2-norm exceeds a limit.

    The result is that of ``torch.nn.utils.clip_grad_norm_``, bit by bit. For a small network PyTorch's
    function takes more than twice as long: it groups the gradients by device and type, and multiplies them
    by 1.

    Args:
        gradients: Dense gradients of one type, on the CPU.
        max_norm: The limit, above 0.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    factor = max_norm / (norm + 1e-6)
    # A factor of NaN is not at least 1 either: it spoils all gradients, as in PyTorch.
    if not factor.item() >= 1:
        torch._foreach_mul_(gradients, factor)
