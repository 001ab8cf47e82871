"""Kronecker-factored preconditioners of PSGD, for stacks of tensors of the same shape.

A tensor of shape ``(d_1, ..., d_n)`` has one factor Q_i per dimension: an upper triangular matrix
``(d_i, d_i)``, or the diagonal ``(d_i,)`` of a diagonal matrix. The preconditioner of the flattened tensor is
the Kronecker product of all P_i = Q_i' Q_i. All functions except the first take stacks: tensors
``(count, d_1, ..., d_n)`` and factors ``(count, d_i, d_i)`` or ``(count, d_i)``, one row per tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

MemorySaveMode = Literal["one_diag", "smart_one_diag", "all_diag"]
"""Diagonal factors: that of the largest dimension, the same only if no other is as large, or all."""

TINY = torch.finfo(torch.bfloat16).tiny


def identity_factors(
    parameter: Tensor,
    scale: float,
    max_size_triangular: int,
    min_ndim_triangular: int,
    memory_save_mode: MemorySaveMode | None,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """Return the initial factors of a parameter; their Kronecker product is ``scale`` times the identity.

    Args:
        parameter: The parameter; a scalar has a single, scalar factor.
        scale: Scale of the product.
        max_size_triangular: Largest size of a dimension with a triangular factor.
        min_ndim_triangular: Smallest number of dimensions of a parameter with triangular factors.
        memory_save_mode: Which other factors are diagonal.
        dtype: Dtype of the factors; ``None`` uses that of the parameter.
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
    """Return P = Q' Q of each factor."""
    return [factor.square() if factor.dim() == 2 else _upper_gram(factor) for factor in factors]


def multiply(factors: Sequence[Tensor], stack: Tensor) -> Tensor:
    """Multiply each tensor of a stack by the Kronecker product of its factors, one dimension at a time.

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
            # Multiply the last dimension from the right, which avoids a transposition.
            flat = stack.reshape(len(stack), -1, stack.shape[-1])
            stack = torch.bmm(flat, factor.mT).view(stack.shape)
        else:
            moved = stack.movedim(dim, 1)
            flat = torch.bmm(factor, moved.flatten(2))
            stack = flat.view(moved.shape).movedim(1, dim)
    return stack


def divide(factors: Sequence[Tensor], stack: Tensor) -> Tensor:
    """Multiply each tensor of a stack by the inverse transpose of the Kronecker product of its factors.

    Triangular systems are solved in float32 or wider.

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
            dtype = torch.promote_types(factor.dtype, torch.float32)
            moved = stack.movedim(dim, -1)
            flat = moved.reshape(len(stack), -1, moved.shape[-1]).to(dtype)
            # Rows x' = y' Q^-1 are columns x = Q'^-1 y. LAPACK takes twice as long from the left.
            flat = torch.linalg.solve_triangular(factor.to(dtype), flat, upper=True, left=False)
            stack = flat.to(stack.dtype).view(moved.shape).movedim(-1, dim)
    return stack


def balance_(factors: Sequence[Tensor]) -> None:
    """Scale the factors of each tensor to the same largest entry, in place; their product does not change."""
    norms = torch.stack([factor.flatten(1).abs().amax(1) for factor in factors])
    # The geometric mean of the norms as the common norm gives gains with a product of 1.
    gains = norms.prod(0) ** (1 / len(factors)) / norms
    for factor, gain in zip(factors, gains, strict=True):
        factor.mul_(gain.view(-1, *[1] * (factor.dim() - 1)))


def fit_(factors: Sequence[Tensor], probes: Tensor, gradients: Tensor, rate: float) -> None:
    """Move the factors, in place, towards those that whiten the gradients.

    Let Q be the Kronecker product of the factors, g the gradient and v a probe. This is a descent step on
    E|Q g|^2 + E|Q'^-1 v|^2 in the group of triangular matrices (PSGD, Li 2018, arXiv 1512.04202). It changes
    each factor by Q_i <- Q_i - rate triu(A_i - B_i) Q_i / |A_i + B_i|. A_i and B_i are the second moments of
    Q g and Q'^-1 v along dimension i; they agree on average if Q whitens the gradient.

    Args:
        factors: Per dimension ``(count, d_i, d_i)``, or ``(count, d_i)`` if diagonal.
        probes: Standard normal draws v, ``(count, d_1, ..., d_n)``.
        gradients: Gradients g, ``(count, d_1, ..., d_n)``, of the dtype of the factors.
        rate: Relative size of the step.
    """
    whitened, probed = multiply(factors, gradients), divide(factors, probes)
    for dim, factor in enumerate(factors, start=1):
        if factor.dim() == 2:
            # A diagonal factor needs only the diagonals of A and B.
            others = [other for other in range(1, whitened.dim()) if other != dim]
            moment_a, moment_b = (_sum_of_squares(terms, others) for terms in (whitened, probed))
            norm = (moment_a + moment_b).amax(1, keepdim=True)
            factor.sub_(moment_a.sub_(moment_b).mul_(factor).mul_(rate / norm.add_(TINY)))
        else:
            sides = (terms.movedim(dim, 1).reshape(*factor.shape[:2], -1) for terms in (whitened, probed))
            moment_a, moment_b = map(_gram, sides)
            norm = spectral_norm_bound(moment_a + moment_b)
            change = moment_a.sub_(moment_b).triu_().mul_(rate / norm.add_(TINY).view(-1, 1, 1))
            factor.sub_(_upper_product(change, factor))


def spectral_norm_bound(matrices: Tensor) -> Tensor:
    """Return lower bounds of the spectral norms of positive semidefinite matrices.

    The bounds come from two power iterations that start at the column of largest norm, as in PSGD.

    Args:
        matrices: Matrices ``(count, d, d)``; they are scaled in place.

    Returns:
        The bounds, ``(count,)``.
    """
    # The largest entry of a positive semidefinite matrix lies on its diagonal.
    largest = matrices.diagonal(dim1=1, dim2=2).amax(1)
    # Squares of unscaled entries could overflow or underflow.
    matrices.div_(torch.where(largest > 0, largest, 1).view(-1, 1, 1))
    row = torch.linalg.vector_norm(matrices, dim=2).argmax(1)
    direction = torch.bmm(matrices, matrices.take_along_dim(row.view(-1, 1, 1), dim=1).mT)
    length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    direction = direction / length.clamp_min(torch.finfo(matrices.dtype).tiny)
    return torch.linalg.vector_norm(torch.bmm(matrices, direction), dim=(1, 2)) * largest


# Products of triangular matrices and symmetric products are computed in blocks, without the blocks that are
# zero or known by symmetry. That saves a quarter to a half of the work.


def _gram(sides: Tensor) -> Tensor:
    """Return S S' of matrices S ``(count, d, k)``."""
    half = sides.shape[1] // 2
    upper, lower = sides[:, :half], sides[:, half:]
    return _mirrored(torch.bmm(upper, sides.mT), torch.bmm(lower, lower.mT))


def _upper_gram(factors: Tensor) -> Tensor:
    """Return Q' Q of upper triangular matrices Q ``(count, d, d)``."""
    half = factors.shape[1] // 2
    right = factors[:, :, half:]
    return _mirrored(torch.bmm(factors[:, :half, :half].mT, factors[:, :half]), torch.bmm(right.mT, right))


def _mirrored(upper: Tensor, corner: Tensor) -> Tensor:
    """Return symmetric matrices from their upper halves and lower right corners."""
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
    """Reshape diagonals ``(count, d_dim)`` for broadcasting along a dimension of a stack."""
    return diagonal.view(len(stack), *[1] * (dim - 1), -1, *[1] * (stack.dim() - dim - 1))


def _sum_of_squares(stack: Tensor, dims: Sequence[int]) -> Tensor:
    # PyTorch's sum over an empty tuple would reduce all dimensions.
    return stack.square().sum(tuple(dims)) if dims else stack.square()
