"""Gradient flow: the norm of each layer's gradient, and the cosine between gradients of different steps.

Gradients are mappings from a layer's name to the gradients of its parameters, ``None`` for a parameter
without one. A layer without any gradient has a zero gradient. All results stay on the device of the
gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lit_gfs.networks.layers import own_parameters

LayerParameters = Mapping[str, Sequence[nn.Parameter]]
LayerGradients = Mapping[str, Sequence[Tensor | None]]


def parameters_by_layer(
    layers: Mapping[str, nn.Module], trained: Iterable[nn.Parameter] | None = None
) -> dict[str, list[nn.Parameter]]:
    """List the trainable parameters that each layer owns directly.

    A shared parameter belongs to the first of its layers, so each gradient counts once. Layers without
    parameters of their own are left out.

    Args:
        layers: Layers by name, in forward order.
        trained: The parameters to include, usually those of an optimizer; ``None`` includes all trainable
            ones.

    Returns:
        Parameters by layer name, in the order of ``layers``.
    """
    included = None if trained is None else {id(parameter) for parameter in trained}
    seen: set[int] = set()
    owned: dict[str, list[nn.Parameter]] = {}
    for name, layer in layers.items():
        for parameter in own_parameters(layer):
            is_included = parameter.requires_grad and (included is None or id(parameter) in included)
            if is_included and id(parameter) not in seen:
                seen.add(id(parameter))
                owned.setdefault(name, []).append(parameter)
    return owned


def gradients_by_layer(parameters: LayerParameters) -> dict[str, list[Tensor | None]]:
    """Return the current gradients without copying them; sparse gradients become dense.

    Args:
        parameters: Parameters by layer name, from `parameters_by_layer`.

    Returns:
        Gradients by layer name, one entry per parameter.
    """
    return {name: [_gradient(parameter) for parameter in owned] for name, owned in parameters.items()}


def layer_norms(gradients: LayerGradients) -> Tensor:
    """Compute the 2-norm of each layer's gradient, over all its parameters together.

    Args:
        gradients: Gradients of L layers, of any floating dtype.

    Returns:
        Norms ``(L,)``, accumulated in float32 or wider; 0 for a layer without a gradient.
    """
    present = [[gradient for gradient in layer if gradient is not None] for layer in gradients.values()]
    flat = [gradient for layer in present for gradient in layer]
    if not flat:
        return torch.zeros(len(present))
    dtype = _accumulation_dtype(flat)
    norms = torch._foreach_norm(flat, 2, dtype=dtype)
    squares = torch.stack([norm.to(flat[0].device) for norm in norms]).square()
    # Sum each layer separately, because an indexed sum is not deterministic on every device.
    return torch.stack([layer.sum() for layer in squares.split([len(layer) for layer in present])]).sqrt()


def layer_cosines(gradients: LayerGradients, previous: LayerGradients) -> Tensor:
    """Compute the cosine similarity of each layer's gradient and an earlier one.

    Args:
        gradients: Gradients of L layers.
        previous: Earlier gradients of the same layers, with the same shapes.

    Returns:
        Cosines ``(L,)`` in [-1, 1]; NaN if either gradient is zero, missing or not finite.
    """
    norms, earlier_norms = layer_norms(gradients), layer_norms(previous)
    dots = torch.stack(
        [
            _dot(layer, earlier).to(norms)
            for layer, earlier in zip(gradients.values(), previous.values(), strict=True)
        ]
    )
    products = norms * earlier_norms.to(norms)
    return torch.where(products.isfinite(), (dots / products).clamp(-1.0, 1.0), torch.nan)


def max_min_ratio(norms: Tensor) -> Tensor:
    """Return the ratio of the largest to the smallest layer norm, among the finite and non-zero norms.

    Args:
        norms: Layer norms ``(L,)``.

    Returns:
        The ratio ``()``, at least 1; NaN if all norms are zero or not finite.
    """
    usable = norms.isfinite() & (norms > 0)
    largest = torch.where(usable, norms, -torch.inf).max()
    smallest = torch.where(usable, norms, torch.inf).min()
    return torch.where(usable.any(), largest / smallest, torch.nan)


def _gradient(parameter: nn.Parameter) -> Tensor | None:
    if parameter.grad is None:
        return None
    gradient = parameter.grad.detach()
    return gradient.to_dense() if gradient.is_sparse else gradient


def _dot(layer: Sequence[Tensor | None], earlier: Sequence[Tensor | None]) -> Tensor:
    """Return the dot product ``()`` of two gradients of one layer; a missing gradient counts as zero."""
    pairs = [(a, b) for a, b in zip(layer, earlier, strict=True) if a is not None and b is not None]
    if not pairs:
        return torch.zeros(())
    dtype = _accumulation_dtype([a for a, _ in pairs])
    return torch.stack([torch.dot(a.flatten().to(dtype), b.flatten().to(dtype)) for a, b in pairs]).sum()


def _accumulation_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return float32, or float64 if any tensor has it."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
