"""Gradient normalization: layers receive gradients of like size."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lit_gfs.errors import UserError, nearest, require_between
from lit_gfs.gradients.layerwise import LayerwiseScaling

Reference = Literal["running", "instant", "unit", "weight"]
"""What a layer's gradient norm is brought to: the running or the momentary geometric mean over the layers, 1,
or the norm of the layer's parameters."""

_LARGEST_FACTOR = 1e8
"""A layer that starves by more than this has no gradient, but rounding errors."""


class GradientNormalizer(LayerwiseScaling):
    """Brings the gradient norms of layers closer together: g_l <- g_l (r / n_l)^strength.

    n_l is the norm of layer l's gradient and r the reference. At strength 1 every layer has norm r
    (block-normalized gradient, Yu et al. 2017, arXiv 1707.04822); at 0 nothing changes. References:

    - ``running``: geometric mean over the layers, its logarithm averaged over time. Steps keep their relative
      sizes only as far as strength is below 1: the gradient of all layers together shrinks and grows less
      than it did.
    - ``instant``: the same without the average over time. The geometric mean over the layers stays as it was.
    - ``unit``: 1.
    - ``weight``: the norm of the layer's parameters, so that relative changes are alike (LARS, You et al.
      2017, arXiv 1708.03888, without its trust coefficient). A layer whose parameters are all zero is left
      alone.

    Args:
        strength: From 0 (off) to 1 (full equalization).
        reference: What norms are brought to.
        decay: Memory of the running reference, per step.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(self, strength: float = 0.5, reference: Reference = "running", decay: float = 0.99) -> None:
        super().__init__()
        require_between(0, 1, strength=strength, decay=decay)
        if reference not in get_args(Reference):
            raise UserError(
                f"reference is {reference!r}; expected one of {', '.join(get_args(Reference))}"
                f"{nearest(reference, get_args(Reference))}"
            )
        self.strength = strength
        self.reference = reference
        self.decay = decay
        self.needs_weights = reference == "weight"

    def factors(self, norms: Tensor, usable: Tensor, weight_norms: Tensor | None = None) -> Tensor:
        """Return (r / n_l)^strength, at most 1e8."""
        if self.reference == "unit":
            target = torch.ones_like(norms)
        elif self.reference == "weight":
            assert weight_norms is not None
            target = torch.where(weight_norms > 0, weight_norms.to(norms), norms)
        else:
            target = self._geometric_mean(norms, usable)
        return (target / norms).clamp(max=_LARGEST_FACTOR) ** self.strength

    def _geometric_mean(self, norms: Tensor, usable: Tensor) -> Tensor:
        """Return the reference ``()``, advanced by one step."""
        count = usable.sum()
        instant = torch.where(usable, norms, 1.0).log().sum() / count.clamp(min=1)
        if self.reference == "instant":
            return instant.exp()
        mean, steps = self.state["log_reference"], self.state["steps"]
        seen = count > 0
        weight = (1 / (steps + 1)).clamp(min=1 - self.decay) * seen
        mean += weight * (instant - mean)
        steps += seen
        return mean.exp()

    def _fresh_state(self, norms: Tensor) -> dict[str, Tensor]:
        keys = ("log_reference", "steps") if self.reference == "running" else ()
        return {key: norms.new_zeros(()) for key in keys}
