"""Definition of a *layer*, the unit for measuring and stabilizing gradient flow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


def own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """List the parameters that a module owns directly, including those of its parametrizations.

    Args:
        module: Any module. If its weight is parametrized (weight or spectral normalization), it also owns the
            parameters from which the weight is computed, although submodules hold them.
    """
    yield from module.parameters(recurse=False)
    if is_parametrized(module):
        yield from cast(nn.ModuleDict, module.parametrizations).parameters()


def named_layers(module: nn.Module) -> dict[str, nn.Module]:
    """List the layers of a module: its submodules that own trainable parameters directly.

    A layer is a Linear, a convolution, a normalization and so on, with its weight and bias together;
    containers are not layers. Frozen layers (such as those of a target network) are not listed. Shared
    parameters count once, for the first layer that owns them. A layer with a parametrized weight is one
    layer.

    Args:
        module: Any module, also from other packages.

    Returns:
        Layers by their dotted names, in registration order. If ``module`` itself owns parameters, its key is
        its class name.
    """
    seen: set[nn.Parameter] = set()
    layers: dict[str, nn.Module] = {}
    for name, child in module.named_modules():
        owned = [p for p in own_parameters(child) if p.requires_grad and p not in seen]
        if owned:
            layers[name or type(module).__name__] = child
            seen.update(owned)
    return layers


def is_computed_by_hooks(layer: nn.Module) -> bool:
    """Return whether the old ``nn.utils.weight_norm`` or ``spectral_norm`` computes a layer's weight."""
    if is_parametrized(layer):
        return False
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter)


def as_matrix(weight: Tensor) -> Tensor:
    """View a weight as a matrix ``(outputs, inputs)``; a convolution's kernel positions count as inputs."""
    return weight.reshape(weight.shape[0], -1)


SMALLEST_HIDDEN_SIDE = 32
"""Units on both sides from which a matrix that is not square counts as hidden."""
LARGEST_HIDDEN_RATIO = 4
"""Largest ratio of the sides of a hidden layer's matrix: such a layer expands or contracts fourfold."""


def is_hidden_matrix(parameter: Tensor, smallest_side: int = SMALLEST_HIDDEN_SIDE) -> bool:
    """Return whether a parameter is the matrix of a hidden layer, told by its shape.

    A hidden layer maps features to features: its matrix is square, or both of its sides are wide. First
    layers and heads have a side that the task sets, and it is usually small: the numbers of an observation,
    the actions, a value. A linear layer that reads a whole image, such as the flattened output of a
    convolution, has far more inputs than units; it is no hidden layer either.

    Args:
        parameter: Any parameter. A convolution's kernel counts as the matrix ``(out_channels, in_channels *
            kernel positions)``.
        smallest_side: Units that both sides of a matrix need unless it is square.
    """
    if parameter.ndim < 2:
        return False
    rows, columns = parameter.shape[0], parameter.shape[1:].numel()
    if parameter.ndim == 2 and max(rows, columns) > LARGEST_HIDDEN_RATIO * min(rows, columns):
        return False
    return rows == columns > 1 or min(rows, columns) >= smallest_side
