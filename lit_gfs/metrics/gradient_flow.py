"""Gradient flow: the norm of each layer's gradient, and the cosine between gradients of different steps.

Gradients are mappings from a layer's name to the gradients of its parameters, ``None`` for a parameter
without one. A layer without any gradient has a zero gradient. All results stay on the device of the
gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

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
    norms = [norm.to(flat[0].device) for norm in torch._foreach_norm(flat, 2, dtype=dtype)]
    return _row_per_layer(norms, [len(layer) for layer in present]).square().sum(1).sqrt()


def layer_cosines(gradients: LayerGradients, previous: LayerGradients) -> Tensor:
    """Compute the cosine similarity of each layer's gradient and an earlier one.

    Args:
        gradients: Gradients of L layers.
        previous: Earlier gradients of the same layers, with the same shapes.

    Returns:
        Cosines ``(L,)`` in [-1, 1]; NaN if either gradient is zero, missing or not finite.
    """
    norms, earlier_norms = layer_norms(gradients), layer_norms(previous)
    pairs = [
        [(a, b) for a, b in zip(layer, earlier, strict=True) if a is not None and b is not None]
        for layer, earlier in zip(gradients.values(), previous.values(), strict=True)
    ]
    # A missing gradient counts as zero.
    dots = [
        torch.dot(a.flatten().to(norms.dtype), b.flatten().to(norms.dtype))
        for layer in pairs
        for a, b in layer
    ]
    if not dots:
        return torch.full_like(norms, torch.nan)
    by_layer = _row_per_layer(dots, [len(layer) for layer in pairs]).sum(1)
    products = norms * earlier_norms.to(norms)
    return torch.where(products.isfinite(), (by_layer / products).clamp(-1.0, 1.0), torch.nan)


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


def _row_per_layer(values: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Stack the values ``()`` of all layers, one layer after the other, with one row for each layer.

    Rows are padded with zeros to the same length, so that one sum serves all layers. An indexed sum is not
    deterministic on every device, and a sum for each layer launches a kernel for each.

    Args:
        values: At least one value.
        counts: Number of values of each of the L layers.

    Returns:
        Rows ``(L, max(counts))``.
    """
    most = max(counts)
    if min(counts) == most:
        return torch.stack(list(values)).view(len(counts), most)
    zero = torch.zeros_like(values[0])
    ends = accumulate(counts)
    rows = [[*values[end - n : end], *[zero] * (most - n)] for n, end in zip(counts, ends, strict=True)]
    return torch.stack([value for row in rows for value in row]).view(len(counts), most)


def _accumulation_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return float32, or float64 if any tensor has it."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
