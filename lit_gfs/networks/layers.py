"""What a *layer* is: the unit at which gradient flow is measured and stabilized."""

from __future__ import annotations

from torch import nn


def named_layers(module: nn.Module) -> dict[str, nn.Module]:
    """List the layers of a module: its submodules that own trainable parameters directly.

    A layer is a Linear, a convolution, a normalization and so on, its weight and bias together; containers
    are not layers. Frozen layers (a target network) are left out, and so is a module whose parameters all
    belong to layers before it: what is shared is listed once, under its first name.

    Args:
        module: Any module, not only the networks of this package.

    Returns:
        Layers by their dotted name, in registration order. If ``module`` owns parameters itself, it is
        listed under its class name.
    """
    modules = dict(module.named_modules())
    return {name or type(module).__name__: modules[name] for name in _owned_parameters(module)}


def layer_parameters(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """List the trainable parameters of each layer, every parameter exactly once.

    Where two layers share a parameter, as with tied weights, the first of them has it.

    Args:
        module: Any module, not only the networks of this package.

    Returns:
        Parameters by the layer's name; the names and their order are those of `named_layers`.
    """
    return {name or type(module).__name__: owned for name, owned in _owned_parameters(module).items()}


def _owned_parameters(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    seen: set[nn.Parameter] = set()
    layers: dict[str, list[nn.Parameter]] = {}
    for name, child in module.named_modules():
        owned = [p for p in child.parameters(recurse=False) if p.requires_grad and p not in seen]
        if owned:
            layers[name] = owned
            seen.update(owned)
    return layers
