"""Gradient normalization: bring the gradient norms of all layers closer together."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lit_gfs.errors import UserError, nearest, require_between
from lit_gfs.gradients.layerwise import LayerwiseScaling

Reference = Literal["running", "instant", "unit", "weight"]
"""Reference norm: the running or the current geometric mean over the layers, 1, or the norm of the layer's
parameters."""

_MAX_FACTOR = 1e8
"""Largest factor before the exponent. A gradient smaller than this allows consists of rounding errors."""


class GradientNormalizer(LayerwiseScaling):
    """Scales the gradient g_l of each layer l towards a reference norm: g_l <- g_l (r / n_l)^strength.

    n_l is the norm of layer l's gradient and r is the reference. At strength 1 every layer has the norm r
    (block-normalized gradient, Yu et al. 2017, arXiv 1707.04822); at 0 the gradients are unchanged.
    References:

    - ``running``: the geometric mean over the layers; its logarithm is averaged over time. At a strength
      above 0, the gradient of the whole network varies less over time than before.
    - ``instant``: the geometric mean over the layers at this step. Scaling does not change it.
    - ``unit``: 1.
    - ``weight``: the norm of the layer's parameters, so all layers change by a similar relative amount (LARS,
      You et al. 2017, arXiv 1708.03888, without the trust coefficient). Layers whose parameters are all zero
      stay unchanged.

    Args:
        strength: From 0 (off) to 1 (full equalization).
        reference: The reference norm.
        decay: Decay of the running reference, per step.

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
        return (target / norms).clamp(max=_MAX_FACTOR) ** self.strength

    def _geometric_mean(self, norms: Tensor, usable: Tensor) -> Tensor:
        """Return the geometric mean ``()`` over the usable layers, and update its running average."""
        count = usable.sum()
        # Mean of log n_l; unusable layers contribute log 1 = 0.
        instant = torch.where(usable, norms, 1.0).log().sum() / count.clamp(min=1)
        if self.reference == "instant":
            return instant.exp()
        mean, steps = self.state["log_reference"], self.state["steps"]
        has_layers = count > 0
        # A plain average over the first steps has no bias; later it is an exponential moving average.
        weight = (1 / (steps + 1)).clamp(min=1 - self.decay) * has_layers
        mean += weight * (instant - mean)
        steps += has_layers
        return mean.exp()

    def _fresh_state(self, norms: Tensor) -> dict[str, Tensor]:
        keys = ("log_reference", "steps") if self.reference == "running" else ()
        return {key: norms.new_zeros(()) for key in keys}
