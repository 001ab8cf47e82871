"""Matrices of equal shape as one batch, so that one operation works on all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def stacks_of(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Group tensors by their shapes as matrices, their dtypes and their devices.

    Args:
        tensors: Tensors with at least two dimensions, by name; a kernel counts as the matrix
            ``(out_channels, in_channels * kernel positions)``.

    Returns:
        The groups, by name.
    """
    groups: dict[tuple[torch.Size, torch.dtype, torch.device], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key = (tensor.flatten(1).shape, tensor.dtype, tensor.device)
        groups.setdefault(key, {})[name] = tensor
    return list(groups.values())


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Copy the L tensors of a group into one batch of matrices, ``(L, rows, columns)``."""
    return torch.stack([tensor.flatten(1) for tensor in tensors])


def like(tensors: Sequence[Tensor], matrices: Tensor) -> list[Tensor]:
    """View a batch of L matrices as tensors with the shapes of the L tensors of a group."""
    return [matrix.view_as(tensor) for tensor, matrix in zip(tensors, matrices.unbind(), strict=True)]


def unstack_(matrices: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy each of a batch of matrices into the tensor at its place."""
    torch._foreach_copy_(list(tensors), like(tensors, matrices))
