"""What the gradient interventions share: one factor per layer, found from the norms of its gradients."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gfs.metrics.gradient_flow import LayerGradients, layer_norms


class ScaledGradients(NamedTuple):
    """What was done to the gradients of L layers; tensors on the gradients' device, ``(L,)``."""

    norms: Tensor
    """2-norms before; 0 for a layer without a gradient."""
    scales: Tensor
    """The factors; 1 where nothing was done."""


class LayerwiseScaling:
    """Base of the algorithms that multiply each layer's gradient by a factor of its own.

    A factor is a scalar, so a layer keeps its gradient's direction. What state has for each layer is matched
    by name: layers may come and go. A layer without a gradient, or with a zero one, says nothing about scale:
    it is left alone and its state rests. If any norm is not finite, no gradient changes and no state moves.

    A subclass lists its state in `_fresh_state` and gives the factors in `factors`.
    """

    needs_weights = False
    """Whether `factors` reads the norms of the parameters themselves."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        """The names of the L layers that state is kept for."""
        self.state: dict[str, Tensor] = {}
        """Tensors by name, on the gradients' device: ``(..., L)``, or ``()`` for what all layers share."""
        self._kept_as: tuple[torch.device, torch.dtype] | None = None
        """Where the state is and how precise, None as long as it has not been matched to gradients."""

    def factors(self, norms: Tensor, usable: Tensor, weight_norms: Tensor | None) -> Tensor:
        """Return the factor of each layer, and take the norms into the state.

        Args:
            norms: Gradient norms ``(L,)``, finite and positive where ``usable``.
            usable: Which layers count, ``(L,)`` of bool; the state of the others must not move.
            weight_norms: Norms of the layers' parameters ``(L,)``, where `needs_weights`.

        Returns:
            Factors ``(L,)``; ignored where not ``usable``.
        """
        raise NotImplementedError

    def _fresh_state(self, norms: Tensor) -> dict[str, Tensor]:
        """Return the state of layers never seen, ``(..., L)`` or ``()`` each, like ``norms`` ``(L,)``."""
        raise NotImplementedError

    @torch.no_grad()
    def apply(self, gradients: LayerGradients, weights: LayerGradients | None = None) -> ScaledGradients:
        """Scale gradients in place.

        Args:
            gradients: Gradients of L layers by name, as from
                `lit_gfs.metrics.gradient_flow.gradients_by_layer`.
            weights: The parameters themselves in the same form, where the algorithm `needs_weights`.

        Returns:
            What was done.
        """
        norms = layer_norms(gradients)
        self._align(list(gradients), norms)
        usable = norms.isfinite().all() & (norms > 0)
        weight_norms = layer_norms(weights) if self.needs_weights and weights is not None else None
        # Norms that do not count are kept from the arithmetic, where they could turn into NaN.
        factors = self.factors(torch.where(usable, norms, 1.0), usable, weight_norms)
        scales = torch.where(usable, factors, 1.0)
        scale_gradients_(gradients, scales)
        return ScaledGradients(norms, scales)

    def state_dict(self) -> dict[str, Any]:
        """Return all state, as strings and tensors."""
        return {
            "layers": list(self.layers),
            "state": {key: value.clone() for key, value in self.state.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with saved state.

        Layers are matched by name when gradients are next applied. State of another kind, or with a history
        of another length, says nothing here: the algorithm then begins anew.
        """
        self.layers = list(state["layers"])
        self.state = {key: value.clone() for key, value in state["state"].items()}
        self._kept_as = None

    def _align(self, layers: Sequence[str], norms: Tensor) -> None:
        """Bring the state to these layers, this device and precision; what is known of a layer stays."""
        kept_as = (norms.device, norms.dtype)
        if self.layers == layers and self._kept_as == kept_as:
            return
        fresh = self._fresh_state(norms)
        shapes = ({key: value.shape[:-1] for key, value in state.items()} for state in (self.state, fresh))
        if operator.ne(*shapes):
            self.layers, self.state = [], {}
        kept = [name for name in layers if name in self.layers]
        new, old = [layers.index(name) for name in kept], [self.layers.index(name) for name in kept]
        for key, known in self.state.items():
            if known.ndim == 0:
                fresh[key].copy_(known)
            else:
                fresh[key][..., new] = known.to(fresh[key])[..., old]
        self.layers, self.state, self._kept_as = list(layers), fresh, kept_as


def scale_gradients_(gradients: LayerGradients, scales: Tensor) -> None:
    """Multiply each layer's gradients by the layer's factor, in place.

    Args:
        gradients: Gradients of L layers.
        scales: Factors ``(L,)``.
    """
    if scales.device.type == "cpu":
        # Reading costs nothing here, and most factors are 1.
        pairs = zip(gradients.values(), scales.tolist(), strict=True)
        for layer, scale in pairs:
            if scale != 1.0:
                torch._foreach_mul_([gradient for gradient in layer if gradient is not None], scale)
        return
    flat: list[Tensor] = []
    factors: list[Tensor] = []
    for layer, factor in zip(gradients.values(), scales.unbind(), strict=True):
        present = [gradient for gradient in layer if gradient is not None]
        flat += present
        factors += [factor] * len(present)
    if flat:
        torch._foreach_mul_(
            flat, [factor.to(gradient) for factor, gradient in zip(factors, flat, strict=True)]
        )
