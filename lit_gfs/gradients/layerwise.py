"""Base of the gradient interventions: one factor per layer, computed from the layers' gradient norms."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_gfs.metrics.gradient_flow import (
    LayerGradients,
    gradients_by_layer,
    layer_norms,
    parameters_by_layer,
)
from lit_gfs.networks.layers import named_layers


class ScaledGradients(NamedTuple):
    """Norms and factors of the gradients of L layers; tensors ``(L,)`` on the gradients' device."""

    norms: Tensor
    """2-norms before scaling; 0 for a layer without a gradient."""
    scales: Tensor
    """The applied factors; 1 for an unchanged layer."""


class LayerwiseScaling:
    """Base of the algorithms that multiply the gradient of each layer by a scalar factor.

    A scalar factor keeps the direction of a layer's gradient. The state of each layer is found by the layer's
    name, so layers may appear and disappear. A layer without a gradient, or with a zero gradient, keeps its
    gradient and its state. If any norm is not finite, all gradients and the whole state stay unchanged.

    A subclass implements `_fresh_state` for its state and `factors` for the factors.
    """

    needs_weights = False
    """Whether `factors` reads the norms of the parameters."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        """Names of the L layers in the state."""
        self.state: dict[str, Tensor] = {}
        """Tensors by name, on the gradients' device: ``(..., L)``, or ``()`` if shared by all layers."""
        self._device_and_dtype: tuple[torch.device, torch.dtype] | None = None
        """Device and dtype of the state; None until the state is matched to gradients."""

    def factors(self, norms: Tensor, usable: Tensor, weight_norms: Tensor | None) -> Tensor:
        """Return the factor of each layer, and update the state with the norms.

        Args:
            norms: Gradient norms ``(L,)``, finite and positive where ``usable``.
            usable: Which layers have a usable gradient, boolean ``(L,)``. The state of the other layers must
                not change.
            weight_norms: Norms of the layers' parameters ``(L,)`` if `needs_weights`.

        Returns:
            Factors ``(L,)``; ignored where not ``usable``.
        """
        raise NotImplementedError

    def _fresh_state(self, norms: Tensor) -> dict[str, Tensor]:
        """Return the initial state: tensors ``(..., L)`` or ``()`` on the device of ``norms`` ``(L,)``."""
        raise NotImplementedError

    @torch.no_grad()
    def apply(self, gradients: LayerGradients, weights: LayerGradients | None = None) -> ScaledGradients:
        """Scale gradients in place.

        Args:
            gradients: Gradients of L layers by name, as from
                `lit_gfs.metrics.gradient_flow.gradients_by_layer`.
            weights: The parameters in the same form, if the algorithm `needs_weights`.

        Returns:
            The norms before scaling, and the factors.
        """
        norms = layer_norms(gradients)
        self._align(list(gradients), norms)
        # One non-finite norm makes all layers unusable: the optimizer step is about to be skipped.
        # Norms are finite where they are less than infinity: `isfinite` takes four kernels.
        usable = (norms < torch.inf).all() & (norms > 0)
        weight_norms = layer_norms(weights) if self.needs_weights and weights is not None else None
        # Replace unusable norms by 1, because they could turn the state into NaN.
        factors = self.factors(torch.where(usable, norms, 1.0), usable, weight_norms)
        scales = torch.where(usable, factors, 1.0)
        scale_gradients_(gradients, scales)
        return ScaledGradients(norms, scales)

    def scale_(self, module: nn.Module) -> ScaledGradients:
        """Scale the gradients of all layers of a module, in a training loop of your own.

        Call it between ``loss.backward()`` and ``optimizer.step()``. Layers are those of
        `lit_gfs.networks.named_layers`; their gradients must be dense. Keep one object for each optimizer.

        Args:
            module: The network that the optimizer trains.

        Returns:
            The norms before scaling, and the factors, layer by layer.
        """
        parameters = parameters_by_layer(named_layers(module))
        weights = {name: [parameter.detach() for parameter in owned] for name, owned in parameters.items()}
        return self.apply(gradients_by_layer(parameters), weights if self.needs_weights else None)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as strings and tensors."""
        return {
            "layers": list(self.layers),
            "state": {key: value.clone() for key, value in self.state.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state.

        The next call of `apply` matches the layers by name. If the saved state belongs to another algorithm
        or has a history of another length, the algorithm starts from its initial state.
        """
        self.layers = list(state["layers"])
        self.state = {key: value.clone() for key, value in state["state"].items()}
        self._device_and_dtype = None

    def _align(self, layers: Sequence[str], norms: Tensor) -> None:
        """Match the state to these layers, and to the device and dtype of their norms ``(L,)``.

        Known layers keep their state; new layers get the initial state.
        """
        device_and_dtype = (norms.device, norms.dtype)
        if self.layers == layers and self._device_and_dtype == device_and_dtype:
            return
        fresh = self._fresh_state(norms)
        # Discard a state with other keys or other history lengths.
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
        self.layers, self.state, self._device_and_dtype = list(layers), fresh, device_and_dtype


def scale_gradients_(gradients: LayerGradients, scales: Tensor) -> None:
    """Multiply each layer's gradients by the layer's factor, in place.

    Args:
        gradients: Gradients of L layers.
        scales: Factors ``(L,)``.
    """
    if scales.device.type == "cpu":
        # On the CPU, reading the factors is free. Most factors are 1 and need no multiplication.
        pairs = zip(gradients.values(), scales.tolist(), strict=True)
        for layer, scale in pairs:
            if scale != 1.0:
                torch._foreach_mul_([gradient for gradient in layer if gradient is not None], scale)
        return
    # On other devices, factors stay on the device, converted once for each type of gradients.
    converted: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}
    flat: list[Tensor] = []
    factors: list[Tensor] = []
    for row, layer in enumerate(gradients.values()):
        for gradient in layer:
            if gradient is not None:
                kind = (gradient.device, gradient.dtype)
                if kind not in converted:
                    converted[kind] = scales.to(gradient).unbind()
                flat.append(gradient)
                factors.append(converted[kind][row])
    if not flat:
        return
    if len(scales) == 1 and len(converted) == 1:
        torch._foreach_mul_(flat, factors[0])  # one kernel for many tensors
        return
    # CUDA has no kernel for many tensors and as many factors on the device: this call launches a small one
    # for each tensor. Copying all gradients into one tensor and back would move three times as much memory.
    torch._foreach_mul_(flat, factors)
