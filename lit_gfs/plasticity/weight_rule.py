"""Base of the rules that change weights after an optimizer step, and what they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_gfs.networks.layers import is_computed_by_hooks

Weights = Mapping[str, Tensor]
"""Weights by name, ``<layer>.<parameter>``."""

Rate = float | Tensor
"""A learning rate; some optimizers keep it as a tensor ``()`` on the device."""


class WeightRule:
    """Base of the rules that change weights in place after an optimizer step.

    A rule keeps a tensor for each weight, such as its initial value. It is called under ``no_grad``, and
    never makes the host wait for the device.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}
        """The tensors that the rule keeps, by the name of the weight."""

    def first_sight(self, name: str, weights: Weights) -> Tensor:
        """Return what to keep of a weight before its first step, on the weight's device.

        Args:
            name: Name of the weight.
            weights: All weights that are met together with it.
        """
        raise NotImplementedError

    def meet(self, weights: Weights) -> None:
        """Keep what is needed of weights that the rule has not met yet."""
        new = {name: self.first_sight(name, weights) for name in weights if name not in self.kept}
        self.kept.update(new)

    def apply(self, weights: Weights, rates: Sequence[Rate]) -> dict[str, Tensor]:
        """Change weights in place after an optimizer step.

        Args:
            weights: N weights of one optimizer, which the rule has met.
            rates: Their N learning rates.

        Returns:
            Scalars ``()`` about the change, by name; the same names in all steps.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule keeps, for a checkpoint."""
        return {"kept": {name: value.detach().clone() for name, value in self.kept.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what a checkpoint holds. Weights that it does not know stay as they were met."""
        for name, value in state["kept"].items():
            self.kept[name] = value.to(self.kept[name].device) if name in self.kept else value


def named_weights(
    layers: Mapping[str, nn.Module], parameters: Mapping[str, Sequence[nn.Parameter]]
) -> dict[str, nn.Parameter]:
    """Name the parameters of layers.

    Args:
        layers: Layers by name.
        parameters: The parameters to name, by layer.

    Returns:
        Parameters by ``<layer>.<parameter>``. Those from which a parametrization computes a weight are left
        out: the weight is not theirs to change. So are layers whose weight is computed by hooks.
    """
    named = {}
    for layer, owned in parameters.items():
        if is_computed_by_hooks(layers[layer]):
            continue
        chosen = {id(parameter) for parameter in owned}
        for name, parameter in layers[layer].named_parameters(recurse=False):
            if id(parameter) in chosen:
                named[f"{layer}.{name}"] = parameter
    return named


def layer_of(name: str) -> str:
    """Return the layer's part of a weight's name."""
    return name.rpartition(".")[0]


def norms(tensors: Sequence[Tensor], order: float = 2.0, units: Sequence[float] | None = None) -> Tensor:
    """Compute the vector norm of each tensor.

    Args:
        tensors: N tensors of any floating dtype.
        order: 2, or infinity for the largest magnitude.
        units: N numbers on the host by which the norms are divided; ``None`` for 1.

    Returns:
        Norms ``(N,)`` in float32 or wider, on the device of the first tensor.
    """
    dtype = torch.float64 if any(each.dtype == torch.float64 for each in tensors) else torch.float32
    found: Sequence[Tensor]
    if order == math.inf and all(each.is_cpu for each in tensors):
        # Ten times as quick as PyTorch's norm on a CPU.
        found = [torch.stack(torch.aminmax(each)).abs().amax().to(dtype) for each in tensors]
    else:
        found = torch._foreach_norm(list(tensors), order, dtype=dtype)
    if units is not None:
        # As arguments of a kernel; a tensor of them would have to travel to the device.
        found = torch._foreach_div(list(found), list(units))
    return torch.stack([each.to(tensors[0].device) for each in found])


def root_mean_squares(tensors: Sequence[Tensor], units: Sequence[float] | None = None) -> Tensor:
    """Compute the root mean square of each of N tensors, ``(N,)``, divided by a unit; see `norms`."""
    sizes = [math.sqrt(each.numel()) for each in tensors]
    if units is not None:
        sizes = [size * unit for size, unit in zip(sizes, units, strict=True)]
    return norms(tensors, units=sizes)


def scale_each_(tensors: Sequence[Tensor], factors: Tensor) -> None:
    """Multiply each of N tensors in place by its factor ``(N,)``."""
    if factors.is_cpu:  # reading is free there, and a factor of 1 needs no pass
        for tensor, factor in zip(tensors, factors.tolist(), strict=True):
            if factor != 1:
                tensor.mul_(factor)
    else:
        torch._foreach_mul_(list(tensors), list(factors.unbind()))
