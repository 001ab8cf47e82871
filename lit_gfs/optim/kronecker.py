"""Kronecker-factored preconditioners of PSGD, of many tensors of one shape at a time.

A tensor of shape ``(d_1, ..., d_n)`` has one factor Q_i per dimension: an upper triangular matrix
``(d_i, d_i)``, or a vector ``(d_i,)`` that stands for a diagonal one. The preconditioner of the flattened
tensor is the Kronecker product of all P_i = Q_i' Q_i. All functions but the first take stacks: tensors
``(count, d_1, ..., d_n)`` and factors ``(count, d_i, d_i)`` or ``(count, d_i)``, one row for each tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

MemorySaveMode = Literal["one_diag", "smart_one_diag", "all_diag"]
"""Which factors are diagonal: the largest dimension's, that one if it is strictly the largest, or all."""

TINY = torch.finfo(torch.bfloat16).tiny


def identity_factors(
    parameter: Tensor,
    scale: float,
    max_size_triangular: int,
    min_ndim_triangular: int,
    memory_save_mode: MemorySaveMode | None,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """Return the factors that a parameter begins with, whose Kronecker product is a multiple of the identity.

    Args:
        parameter: What is to be preconditioned; a scalar has one factor, a scalar as well.
        scale: The multiple.
        max_size_triangular: Largest dimension whose factor is a matrix.
        min_ndim_triangular: Fewest dimensions of a parameter whose factors are matrices.
        memory_save_mode: Which further factors are diagonal.
        dtype: Precision of the factors; ``None`` is the parameter's.
    """
    one = torch.ones((), dtype=dtype or parameter.dtype, device=parameter.device)
    shape = parameter.shape
    if not shape:
        return [scale * one]
    dims = range(len(shape))
    largest = max(dims, key=lambda dim: (shape[dim], dim))
    is_largest = all(shape[dim] < shape[largest] for dim in dims if dim != largest) and len(shape) > 1
    diagonal = {dim for dim in dims if shape[dim] == 1 or shape[dim] > max_size_triangular}
    if memory_save_mode == "all_diag" or len(shape) < min_ndim_triangular:
        diagonal.update(dims)
    elif memory_save_mode == "one_diag" or (memory_save_mode == "smart_one_diag" and is_largest):
        diagonal.add(largest)
    ones = [scale ** (1 / len(shape)) * one.repeat(size) for size in shape]
    return [vector if dim in diagonal else vector.diag() for dim, vector in enumerate(ones)]


def squared(factors: Sequence[Tensor]) -> list[Tensor]:
    """Return P = Q' Q of every factor."""
    return [factor.square() if factor.dim() == 2 else _upper_gram(factor) for factor in factors]


def multiply(factors: Sequence[Tensor], stack: Tensor) -> Tensor:
    """Multiply every tensor of a stack by the Kronecker product of its factors.

    Args:
        factors: Per dimension ``(count, d_i, d_i)``, or ``(count, d_i)`` if diagonal.
        stack: ``(count, d_1, ..., d_n)``.

    Returns:
        A new tensor, ``(count, d_1, ..., d_n)``.
    """
    for dim, factor in enumerate(factors, start=1):
        if factor.dim() == 2:
            stack = stack * _along(factor, stack, dim)
        elif dim == stack.dim() - 1:
            # Multiplied from the right, the last dimension need not be turned to the front.
            flat = stack.reshape(len(stack), -1, stack.shape[-1])
            stack = torch.bmm(flat, factor.mT).view(stack.shape)
        else:
            turned = stack.movedim(dim, 1)
            flat = torch.bmm(factor, turned.flatten(2))
            stack = flat.view(turned.shape).movedim(1, dim)
    return stack


def divide(factors: Sequence[Tensor], stack: Tensor) -> Tensor:
    """Multiply every tensor of a stack by the inverse transpose of the Kronecker product of its factors.

    Systems of equations are solved in single precision at least.

    Args:
        factors: Per dimension ``(count, d_i, d_i)``, or ``(count, d_i)`` if diagonal.
        stack: ``(count, d_1, ..., d_n)``.

    Returns:
        A new tensor, ``(count, d_1, ..., d_n)``.
    """
    for dim, factor in enumerate(factors, start=1):
        if factor.dim() == 2:
            stack = stack / _along(factor, stack, dim)
        else:
            precise = torch.promote_types(factor.dtype, torch.float32)
            turned = stack.movedim(dim, -1)
            flat = turned.reshape(len(stack), -1, turned.shape[-1]).to(precise)
            # From the right: LAPACK takes twice as long from the left.
            flat = torch.linalg.solve_triangular(factor.to(precise), flat, upper=True, left=False)
            stack = flat.to(stack.dtype).view(turned.shape).movedim(-1, dim)
    return stack


def balance_(factors: Sequence[Tensor]) -> None:
    """Give the factors of each tensor equal largest entries, in place; their product stays the same."""
    norms = torch.stack([factor.flatten(1).abs().amax(1) for factor in factors])
    gains = norms.prod(0) ** (1 / len(factors)) / norms
    for factor, gain in zip(factors, gains, strict=True):
        factor.mul_(gain.view(-1, *[1] * (factor.dim() - 1)))


def fit_(factors: Sequence[Tensor], probes: Tensor, gradients: Tensor, rate: float) -> None:
    """Move the factors, in place, towards those which whiten the gradients.

    With the Kronecker product Q of the factors it is a step down E|Q g|^2 + E|Q'^-1 v|^2 in the group of
    triangular matrices (PSGD, Li 2018, arXiv 1512.04202), of relative size `rate`.

    Args:
        factors: Per dimension ``(count, d_i, d_i)``, or ``(count, d_i)`` if diagonal.
        probes: Standard normal draws v, ``(count, d_1, ..., d_n)``.
        gradients: ``(count, d_1, ..., d_n)``, of the precision of the factors.
        rate: Size of the step, in units of the factors.
    """
    whitened, probed = multiply(factors, gradients), divide(factors, probes)
    for dim, factor in enumerate(factors, start=1):
        if factor.dim() == 2:
            others = [other for other in range(1, whitened.dim()) if other != dim]
            of_gradients, of_probes = (_sum_of_squares(terms, others) for terms in (whitened, probed))
            size = (of_gradients + of_probes).amax(1, keepdim=True)
            factor.sub_(of_gradients.sub_(of_probes).mul_(factor).mul_(rate / size.add_(TINY)))
        else:
            sides = (terms.movedim(dim, 1).reshape(*factor.shape[:2], -1) for terms in (whitened, probed))
            of_gradients, of_probes = map(_gram, sides)
            size = spectral_norm_bound(of_gradients + of_probes)
            change = of_gradients.sub_(of_probes).triu_().mul_(rate / size.add_(TINY).view(-1, 1, 1))
            factor.sub_(_upper_product(change, factor))


def spectral_norm_bound(matrices: Tensor) -> Tensor:
    """Bound the spectral norms of positive semidefinite matrices from below.

    Two power iterations from the column of largest norm, as in PSGD.

    Args:
        matrices: ``(count, d, d)``; they are scaled in place.

    Returns:
        The bounds, ``(count,)``.
    """
    # No entry of such a matrix is larger than the largest on the diagonal.
    largest = matrices.diagonal(dim1=1, dim2=2).amax(1)
    # Squares of unscaled entries would overflow, or vanish.
    matrices.div_(torch.where(largest > 0, largest, 1).view(-1, 1, 1))
    row = torch.linalg.vector_norm(matrices, dim=2).argmax(1)
    direction = torch.bmm(matrices, matrices.take_along_dim(row.view(-1, 1, 1), dim=1).mT)
    length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    direction = direction / length.clamp_min(torch.finfo(matrices.dtype).tiny)
    return torch.linalg.vector_norm(torch.bmm(matrices, direction), dim=(1, 2)) * largest


# Products of triangles, and symmetric ones, by halves: half of the work, or a quarter, would be for nothing.


def _gram(sides: Tensor) -> Tensor:
    """Return S S' of matrices ``(count, d, k)``."""
    half = sides.shape[1] // 2
    upper, lower = sides[:, :half], sides[:, half:]
    return _mirrored(torch.bmm(upper, sides.mT), torch.bmm(lower, lower.mT))


def _upper_gram(factors: Tensor) -> Tensor:
    """Return Q' Q of upper triangular matrices ``(count, d, d)``."""
    half = factors.shape[1] // 2
    right = factors[:, :, half:]
    return _mirrored(torch.bmm(factors[:, :half, :half].mT, factors[:, :half]), torch.bmm(right.mT, right))


def _mirrored(upper: Tensor, corner: Tensor) -> Tensor:
    """Complete symmetric matrices, of which the upper half and the lower right corner are given."""
    half = upper.shape[1]
    return torch.cat((upper, torch.cat((upper[:, :, half:].mT, corner), 2)), 1)


def _upper_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the products of upper triangular matrices ``(count, d, d)``."""
    half = left.shape[1] // 2
    product = torch.zeros_like(right)
    product[:, :half, :half] = torch.bmm(left[:, :half, :half], right[:, :half, :half])
    product[:, :half, half:] = torch.bmm(left[:, :half], right[:, :, half:])
    product[:, half:, half:] = torch.bmm(left[:, half:, half:], right[:, half:, half:])
    return product


def _along(diagonal: Tensor, stack: Tensor, dim: int) -> Tensor:
    """View diagonals ``(count, d_dim)`` so that they broadcast along a dimension of a stack."""
    return diagonal.view(len(stack), *[1] * (dim - 1), -1, *[1] * (stack.dim() - dim - 1))


def _sum_of_squares(stack: Tensor, dims: Sequence[int]) -> Tensor:
    # PyTorch takes no dimensions for all of them.
    return stack.square().sum(tuple(dims)) if dims else stack.square()
