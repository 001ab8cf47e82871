"""Adaptive gradient clipping: compare the gradient of each unit with the unit's weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_gfs.errors import require_above, require_between
from lit_gfs.gradients.layerwise import LayerwiseScaling, ScaledGradients
from lit_gfs.metrics.gradient_flow import LayerGradients, layer_norms


class AdaptiveClipper(LayerwiseScaling):
    """Limits the gradient of each unit by a share of the norm of its weights (AGC).

    Let W_i be the incoming weights of unit i: a row of a linear layer's matrix, or the kernel of an output
    channel. Their gradient G_i is shortened to the norm ``clip_factor * max(||W_i||, eps)`` if it is longer
    (Brock et al. 2021, arXiv 2102.06171, equation 3). As in the authors' code, a vector or a number counts as
    one unit: all biases of a layer together, or the scale of a normalization. Norms are 2-norms.

    Sparse gradients stay as they are. If any gradient is not finite, all stay as they are.

    Args:
        clip_factor: Largest ratio of the norms of gradient and weights, lambda in the paper.
        eps: Smallest norm of weights that counts, so that weights of 0 can learn.

    Raises:
        UserError: If an argument is out of range.
    """

    needs_weights = True

    def __init__(self, clip_factor: float = 0.01, eps: float = 1e-3) -> None:
        super().__init__()
        require_between(0, float("inf"), eps=eps)
        require_above(0, clip_factor=clip_factor)
        self.clip_factor = clip_factor
        self.eps = eps

    @torch.no_grad()
    def apply(self, gradients: LayerGradients, weights: LayerGradients | None = None) -> ScaledGradients:
        """Clip gradients in place; see `LayerwiseScaling.apply`.

        The returned factors are the ratios of the layers' norms.
        """
        assert weights is not None
        norms = layer_norms(gradients)
        self.layers = list(gradients)
        usable = (norms < torch.inf).all()
        if norms.device.type == "cpu" and not usable:
            return ScaledGradients(norms, torch.ones_like(norms))
        for layer, owned in zip(gradients.values(), weights.values(), strict=True):
            for gradient, weight in zip(layer, owned, strict=True):
                if gradient is not None and weight is not None and gradient.shape == weight.shape:
                    self._clip_(gradient, weight, usable)
        changed = usable & (norms > 0)
        scales = torch.where(changed, layer_norms(gradients) / torch.where(changed, norms, 1.0), 1.0)
        return ScaledGradients(norms, scales)

    def _clip_(self, gradient: Tensor, weight: Tensor, usable: Tensor) -> None:
        size = unit_norms(gradient)
        limit = self.clip_factor * unit_norms(weight).clamp(min=self.eps)
        # A gradient of 0 is never too long, so no factor is a quotient by 0.
        is_long = (size > limit) & usable.to(gradient.device)
        gradient.mul_(torch.where(is_long, limit / size, 1.0).to(gradient.dtype))


def unit_norms(tensor: Tensor) -> Tensor:
    """Return the 2-norm of each unit's entries, in float32 or wider.

    Args:
        tensor: Weights or their gradient: ``(units, *inputs)``, or a vector or number of a single unit.

    Returns:
        Norms ``(units, 1, ..., 1)``, or ``()`` for a single unit.
    """
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    if tensor.ndim <= 1:
        return torch.linalg.vector_norm(tensor, dtype=dtype)
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True, dtype=dtype)
