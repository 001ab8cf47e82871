"""What a *layer* is: the unit at which gradient flow is measured and stabilized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


def own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """List the parameters that a module owns directly, with those that its own are computed of.

    Args:
        module: Any module. Where its weight is parametrized (weight or spectral normalization ...), what the
            weight is made of belongs to it, although other modules hold it.
    """
    yield from module.parameters(recurse=False)
    if is_parametrized(module):
        yield from cast(nn.ModuleDict, module.parametrizations).parameters()


def named_layers(module: nn.Module) -> dict[str, nn.Module]:
    """List the layers of a module: its submodules that own trainable parameters directly.

    A layer is a Linear, a convolution, a normalization and so on, its weight and bias together; containers
    are not layers. Frozen layers (a target network) are left out, and so is a module whose parameters all
    belong to layers before it: what is shared is listed once, under its first name. A layer whose weight is
    parametrized is one layer.

    Args:
        module: Any module, not only the networks of this package.

    Returns:
        Layers by their dotted name, in registration order. If ``module`` owns parameters itself, it is
        listed under its class name.
    """
    seen: set[nn.Parameter] = set()
    layers: dict[str, nn.Module] = {}
    for name, child in module.named_modules():
        owned = [p for p in own_parameters(child) if p.requires_grad and p not in seen]
        if owned:
            layers[name or type(module).__name__] = child
            seen.update(owned)
    return layers
