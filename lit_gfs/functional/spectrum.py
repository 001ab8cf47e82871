"""The spectrum of a matrix: its polar factor by Newton-Schulz steps, its largest singular value.

Let a matrix have the singular value decomposition U S V'. Its *polar factor* is U V': the directions stay,
and every singular value becomes 1. Among all steps of spectral norm 1 it is the steepest (Bernstein and
Newhouse 2024, arXiv 2409.20325). The Muon optimizer applies it to the momentum (Jordan et al. 2024).

A decomposition is slow. An odd polynomial p(X) = (a + b X X' + c (X X')^2) X acts on each singular value by
itself, so a few such steps bring all of them close to 1 with matrix products alone. Gentler polynomials
lift small singular values by a limited factor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STEPS = 5
"""Default number of polynomial steps."""

_COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749518, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945908, 0.37680408948524996),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Polynomials whose composition is closest to 1 on [0.001, 1] (Amsel et al. 2025, arXiv 2505.16932)."""

_HALF_MARGIN = 1.02
"""Factor by which half-precision products stay inside the interval of the polynomials.

Beyond 1 the first polynomials grow fast, so that rounding by 2^-8 could carry a singular value away.
"""

_CACHED_ELEMENTS = 2**17
"""Elements of a product that stays in a core's cache."""


def polar_factor(
    matrices: Tensor, steps: int = STEPS, dtype: torch.dtype | None = None, overwrite: bool = False
) -> Tensor:
    """Return the polar factors of matrices, nearly: all singular values are pushed towards 1.

    A singular value s of X with s / ||X||_F of at least 0.001 ends between 0.87 and 1.13 after 5 steps, and
    between 0.998 and 1.002 after 6. A smaller one grows almost a thousandfold in 5 steps, and zero stays
    zero. The singular vectors stay, and the result depends on the scale of X only below a norm of 1e-19.

    Args:
        matrices: A batch of matrices ``(*batch, rows, columns)``, of any floating dtype.
        steps: Number of polynomial steps.
        dtype: Type of the products; ``None`` for that of the matrices. In half precision a singular value
            differs by a few percent, less than five steps leave of the differences between them, and none
            ends above 1.2.
        overwrite: Whether the matrices may be overwritten; that saves memory, and time on a CPU.

    Returns:
        Matrices of the same shape and dtype; a zero matrix stays zero.
    """
    polynomials = [_COEFFICIENTS[min(step, len(_COEFFICIENTS) - 1)] for step in range(steps)]
    if (dtype or matrices.dtype) not in (torch.bfloat16, torch.float16):
        return _on_singular_values(matrices, polynomials, dtype, overwrite)
    k = _HALF_MARGIN
    polynomials = [(a / k, b / k**3, c / k**5) for a, b, c in polynomials]  # p(s / k)
    return _on_singular_values(matrices, polynomials, dtype, overwrite, margin=k)


def lifted_spectrum(
    matrices: Tensor, lift: float, dtype: torch.dtype | None = None, overwrite: bool = False
) -> Tensor:
    """Divide matrices by their Frobenius norms, then lift small singular values by a limited factor.

    A singular value s of X / ||X||_F ends near ``lift`` s if that is far below 1, and at most at 1. Larger
    ones stay larger, so directions that carry little of X keep a small weight. As ``lift`` grows, the result
    approaches the polar factor.

    Args:
        matrices: A batch of matrices ``(*batch, rows, columns)``, of any floating dtype.
        lift: Factor on the smallest singular values, at least 1. The number of steps is its logarithm to the
            base 1.875: two at 3.5.
        dtype: Type of the products; ``None`` for that of the matrices.
        overwrite: As in `polar_factor`.

    Returns:
        Matrices of the same shape and dtype; a zero matrix stays zero.
    """
    # p(s) = a s + (2.5 - 2 a) s^3 + (a - 1.5) s^5 has p(1) = 1 and p'(1) = 0, and rises on [0, 1] for
    # 1 <= a <= 1.875. Its slope at zero is a, so that of n steps is a^n.
    steps = math.ceil(math.log(lift, 1.875) - 1e-9)  # rounding must not add a step
    slope = lift ** (1 / max(steps, 1))
    return _on_singular_values(matrices, [(slope, 2.5 - 2 * slope, slope - 1.5)] * steps, dtype, overwrite)


def in_blocks(matrices: Tensor, block: int | None) -> Tensor:
    """View matrices ``(L, rows, columns)`` as ``(L, blocks, rows of a block, columns)``.

    The number of blocks is the smallest that divides the rows and leaves at most ``block`` rows in each;
    ``None`` is for one block of all rows. Blocks of b rows have a polar factor at a price that grows with b
    instead of with the matrix.
    """
    rows = matrices.shape[1]
    limit = rows if block is None else block
    count = next(count for count in range(1, rows + 1) if rows % count == 0 and rows // count <= limit)
    return matrices.unflatten(1, (count, rows // count))


def dtype_of_products(matrices: Tensor) -> torch.dtype:
    """Return bfloat16 where a device multiplies it much faster than float32, else the matrices' own dtype."""
    is_fast = matrices.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_fast and matrices.dtype == torch.float32 else matrices.dtype


def largest_singular_value(matrices: Tensor, steps: int = 3) -> Tensor:
    """Estimate the spectral norms of matrices by a power iteration, from below.

    The iteration starts at the row of the largest norm, so it needs neither random numbers nor a memory of
    earlier gradients. With three steps the estimate of a Gaussian matrix is 6% to 9% too small.

    Args:
        matrices: A batch of matrices ``(*batch, rows, columns)``.
        steps: Number of products of X' X and a vector.

    Returns:
        Estimates ``(*batch,)``, between the largest norm of a row and the largest singular value.
    """
    if matrices.device.type == "cpu" and matrices.ndim > 2:
        # On a CPU, batched products of matrices and vectors take several times as long as single ones.
        return torch.stack([largest_singular_value(matrix, steps) for matrix in matrices.unbind()])
    tiny = torch.finfo(matrices.dtype).tiny
    size, largest = torch.linalg.vector_norm(matrices, dim=-1).max(-1)
    size = size.clamp(min=tiny)[..., None, None]
    rows = largest[..., None, None].expand(*largest.shape, 1, matrices.shape[-1])
    vector = matrices.gather(-2, rows).mT  # (*batch, columns, 1)
    for _ in range(steps):
        vector = vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True).clamp(min=tiny)
        # The square of a large or a small matrix could leave the range of numbers: one factor loses its size.
        vector = matrices.mT @ (matrices @ vector / size)
    # For a unit vector v, ||X v||^2 = v' X' X v <= ||X' X v|| <= s_max^2.
    return torch.linalg.vector_norm(vector, dim=(-2, -1)).sqrt() * size.squeeze((-2, -1)).sqrt()


def _on_singular_values(
    matrices: Tensor,
    polynomials: list[tuple[float, float, float]],
    dtype: torch.dtype | None,
    overwrite: bool,
    margin: float = 1.0,
) -> Tensor:
    """Divide matrices by margin and Frobenius norm, and apply polynomials to their singular values."""
    *batch, rows, columns = matrices.shape
    stack = matrices.reshape(-1, rows, columns)
    wide = stack.mT if rows > columns else stack
    # The Frobenius norm is at least the largest singular value. Below the lower limit its squares underflow,
    # so a smaller divisor could turn a vanishing gradient into an infinite one.
    norms = torch.linalg.matrix_norm(wide, keepdim=True)
    norms.clamp_(min=torch.finfo(norms.dtype).tiny ** 0.5)
    if margin != 1:
        norms.mul_(margin)
    wide = wide.div_(norms) if overwrite else wide / norms
    wide = wide if dtype is None else wide.to(dtype)
    # Products of the small Gram matrix are cheaper if the matrix is at least twice as wide as high. They need
    # float32, because the Gram matrix squares the singular values.
    is_wide = 2 * wide.shape[1] <= wide.shape[2] and wide.dtype in (torch.float32, torch.float64)
    result = _iterate_gram(wide, polynomials, overwrite) if is_wide else _iterate(wide, polynomials)
    return (result.mT if rows > columns else result).reshape(*batch, rows, columns).to(matrices.dtype)


def _iterate(wide: Tensor, polynomials: list[tuple[float, float, float]]) -> Tensor:
    """Apply polynomials to matrices ``(batch, rows, columns)``: three products a step."""
    for a, b, c in polynomials:
        gram = wide @ wide.mT
        even = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b XX' + c (XX')^2
        wide = torch.baddbmm(wide, even, wide, beta=a)
    return wide


def _iterate_gram(wide: Tensor, polynomials: list[tuple[float, float, float]], overwrite: bool) -> Tensor:
    """Do the same on the Gram matrices, ``(batch, rows, rows)``: p(X) = q(XX') X, so X is needed once."""
    gram = wide @ wide.mT
    total: Tensor | None = None
    for index, (a, b, c) in enumerate(polynomials):
        even = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        even.diagonal(dim1=-2, dim2=-1).add_(a)  # a I + b XX' + c (XX')^2
        total = even if total is None else even @ total
        if index + 1 < len(polynomials):
            gram = even @ gram @ even
    if total is None:
        return wide
    if not overwrite:
        return total @ wide
    # A few matrices at a time, so that a product fits in the cache: on a CPU, fresh memory for all products
    # takes as long as the products.
    chunk = max(1, _CACHED_ELEMENTS // wide[0].numel())
    for some, factors in zip(wide.split(chunk), total.split(chunk), strict=True):
        some.copy_(factors @ some)
    return wide
