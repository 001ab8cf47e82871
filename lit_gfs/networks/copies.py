"""Networks beside those that are trained: slow copies of them, and themselves without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def move_towards_(target: nn.Module, source: nn.Module, share: float) -> None:
    """Move a copy's weights towards those of its source: target <- (1 - share) target + share source.

    Args:
        target: The copy; its buffers become those of the source.
        source: A module of the same structure.
        share: From 0 (stay) to 1 (copy).
    """
    targets: list[Tensor] = list(target.parameters())
    torch._foreach_lerp_(targets, list[Tensor](source.parameters()), share)
    for copied, buffer in zip(target.buffers(), source.buffers(), strict=True):
        copied.copy_(buffer)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a module within this context, but not reach its parameters.

    An output that is computed within is differentiable with respect to the inputs alone, also after the
    context has ended. Parameters that require no gradient stay so.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
