"""Clipping of an optimizer's updates, weight by weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lit_gfs.errors import require_above, require_one_of
from lit_gfs.plasticity.update_rule import UpdateRule
from lit_gfs.plasticity.weight_rule import (
    Rate,
    Weights,
    norms,
    root_mean_squares,
    scale_each_,
)

Measure = Literal["rms", "max"]
"""Size of an update: root mean square, or largest magnitude."""

Reference = Literal["rate", "weight"]
"""Unit of the threshold: the learning rate, or the root mean square of the weight before the step."""


class UpdateClipping(UpdateRule):
    """Shortens the update of a weight if it is larger than a threshold; its direction stays.

    For the update u = w - w_before, w <- w_before + u min(1, threshold * unit / size(u)). With the
    root mean square as the size and the learning rate as the unit, this is the update clipping of Adafactor
    (Shazeer and Stern 2018, arXiv 1804.04235) and of StableAdamW (Wortsman et al. 2023, arXiv 2304.13013),
    with their threshold of 1, but for the update that any optimizer has made: weight decay and momentum are
    part of it. Call `remember` before each step.

    Args:
        threshold: Largest size of an update, in units of the reference, above 0.
        measure: What the size of an update is.
        relative_to: The unit of the threshold.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self, threshold: float = 1.0, measure: Measure = "rms", relative_to: Reference = "rate"
    ) -> None:
        super().__init__()
        require_above(0, threshold=threshold)
        require_one_of(get_args(Measure), measure=measure)
        require_one_of(get_args(Reference), relative_to=relative_to)
        self.threshold = threshold
        self.measure = measure
        self.relative_to = relative_to

    @override
    def apply(self, weights: Weights, rates: Sequence[Rate]) -> dict[str, Tensor]:
        """Shorten the updates; return the share of clipped tensors, and the mean factor."""
        tensors = list(weights.values())
        before = [self.kept[name] for name in weights]
        if self.relative_to == "weight":
            unit = root_mean_squares(before)
        # The buffers have served; they take the way back.
        torch._foreach_sub_(before, tensors)
        if self.relative_to == "weight":
            sizes = self._sizes(before, None) / unit
        elif any(isinstance(rate, Tensor) for rate in rates):
            unit = torch.stack([torch.as_tensor(rate, device=before[0].device).reshape(()) for rate in rates])
            sizes = self._sizes(before, None) / unit
        else:
            sizes = self._sizes(before, [float(rate) for rate in rates])
        factors = torch.where(sizes > self.threshold, self.threshold / sizes, 1.0)
        back = 1 - factors
        if factors.is_cpu:  # reading is free there, and small updates need no pass
            large = back.nonzero().flatten().tolist()
            tensors, before, back = [tensors[i] for i in large], [before[i] for i in large], back[large]
        if tensors:
            scale_each_(before, back)
            torch._foreach_add_(tensors, before)
        return {"clipped_tensors": (factors < 1).float().mean(), "scale": factors.mean()}

    def _sizes(self, updates: Sequence[Tensor], units: Sequence[float] | None) -> Tensor:
        if self.measure == "rms":
            return root_mean_squares(updates, units)
        return norms(updates, math.inf, units)
