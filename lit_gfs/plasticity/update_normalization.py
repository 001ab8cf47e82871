"""Normalization of an optimizer's updates: even out the spectrum of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_gfs.errors import require_between
from lit_gfs.functional.spectrum import STEPS, dtype_of_products, in_blocks, polar_factor
from lit_gfs.functional.stacks import like, stacked, stacks_of
from lit_gfs.plasticity.update_rule import UpdateRule
from lit_gfs.plasticity.weight_rule import Rate, Weights


class UpdateNormalization(UpdateRule):
    """Evens out the spectrum of an optimizer's update of a matrix, and sets its length.

    For the update U = W - W_before of a matrix whose longer side is n, at the learning rate eta,

        E = size eta sqrt(n) P,   W <- W_before + min(1, ||U|| / ||E||) E,

    where P is the polar factor of U (`lit_gfs.functional.spectrum.polar_factor`): its rows, or the columns of
    a matrix that is higher than wide, are orthonormal. So all directions of the update count alike. The root
    mean square of E is ``size eta``, so an outlier among updates becomes one of this length. An update of
    zero stays zero.

    No update becomes longer than the optimizer's. Adam takes short steps where gradients have become small,
    as on a task that is solved, and there a step of a fixed length would undo what was learned. With
    ``lengthen`` the update is E in all cases; with SGD and momentum, this is Muon (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon).

    An optimizer averages gradients before it makes an update. So noise, which differs from batch to batch,
    has less weight here than in a gradient whose spectrum is evened out.

    Call `remember` before each step. All weights must be matrices or kernels; a kernel counts as the matrix
    ``(out_channels, in_channels * kernel positions)``.

    Args:
        size: Root mean square of the new update, in units of the learning rate, at most. Updates of Adam have
            a root mean square of about 0.2 (Liu et al. 2025, arXiv 2502.16982).
        lengthen: Whether the new update may be longer than the optimizer's, by the Frobenius norm.
        block: Rows of a matrix whose polar factor is computed together; ``None`` for all rows. With b rows,
            the price grows with b instead of with the matrix.
        steps: Newton-Schulz steps of the polar factor.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self, size: float = 0.1, lengthen: bool = False, block: int | None = None, steps: int = STEPS
    ) -> None:
        super().__init__()
        require_between(1e-6, 1e6, size=size)
        require_between(1, math.inf, block=block)
        require_between(1, 99, steps=steps)
        self.size = size
        self.lengthen = lengthen
        self.block = block
        self.steps = steps

    @override
    def apply(self, weights: Weights, rates: Sequence[Rate]) -> dict[str, Tensor]:
        """Normalize the updates; return the mean of the factors on their norms."""
        rate_of = dict(zip(weights, rates, strict=True))
        factors = []
        for stack in stacks_of(weights):
            before = [self.kept[name] for name in stack]
            # In place throughout: on a CPU, fresh memory takes as long as the matrix products.
            update = stacked(list(stack.values()))
            torch._foreach_sub_(like(before, update), before)
            former = torch.linalg.vector_norm(update.flatten(1), dim=1)
            even, new = self._even(update, former, [rate_of[name] for name in stack])
            torch._foreach_add_(before, like(before, even))
            torch._foreach_copy_(list(stack.values()), before)
            factors.append(torch.where(former > 0, new / former, 1.0).to(torch.float32).mean())
        return {"scale": torch.stack([each.to(factors[0].device) for each in factors]).mean()}

    def _even(self, update: Tensor, norms: Tensor, rates: Sequence[Rate]) -> tuple[Tensor, Tensor]:
        """Return new updates ``(L, rows, columns)`` and their norms ``(L,)``; overwrite the former ones."""
        blocks = in_blocks(update, self.block)
        even = polar_factor(blocks, self.steps, dtype_of_products(update), overwrite=True)
        even = even.reshape(update.shape)
        # A block that is higher than wide has orthonormal columns instead of rows.
        length = self.size * math.sqrt(max(blocks.shape[-2:]))
        # Numbers go to the device as arguments of a kernel, but not in one list with tensors.
        factors: list[Any] = [rate * length for rate in rates]
        if any(isinstance(factor, Tensor) for factor in factors):
            factors = [torch.as_tensor(factor, device=even.device) for factor in factors]
        torch._foreach_mul_(list(even.unbind()), factors)
        new = torch.linalg.vector_norm(even.flatten(1), dim=1)
        if self.lengthen:
            return even, new
        shorter = torch.minimum(new, norms)
        even.mul_(torch.where(new > 0, shorter / new, 1.0)[:, None, None])
        return even, shorter
