"""Fresh values of weights, drawn as the network's initialization draws them, while the network stays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_gfs.networks import LinearHead, Network
from lit_gfs.networks.layers import is_computed_by_hooks
from lit_gfs.networks.noise import reset_sigmas_
from lit_gfs.networks.orthogonal import orthogonal_
from lit_gfs.utils.transfers import send

Fresh = dict[nn.Parameter, Tensor]
"""New values by parameter."""


def can_redraw(layer: nn.Module) -> bool:
    """Return whether `draw_layers` can draw a layer: its ``reset_parameters`` sets all of its parameters."""
    if is_computed_by_hooks(layer) or hasattr(layer, "parametrizations"):
        return False
    if not callable(getattr(layer, "reset_parameters", None)):
        return False
    with _seeded(0):
        return not any(value.isnan().any() for value in _redrawn(layer).parameters())


def orthogonal_gains(module: nn.Module) -> dict[nn.Module, float]:
    """Return the gains of all layers with an orthogonal initialization: of a `Network`, and of heads.

    Args:
        module: Any module.
    """
    gains: dict[nn.Module, float] = {}
    for each in module.modules():
        if isinstance(each, Network) and each.initialization == "orthogonal":
            gains.update(dict.fromkeys(each.encoder.modules(), each.encoder.gain))
            gains.update(dict.fromkeys(each.trunk.modules(), each.trunk.gain))
        elif isinstance(each, LinearHead):
            gains[each] = each.gain
    return gains


@torch.no_grad()
def draw_layers(layers: Iterable[nn.Module], gains: Mapping[nn.Module, float], seed: int) -> Fresh:
    """Draw new values for the parameters of layers, which do not change.

    A layer with a gain gets an orthogonal weight and a bias of 0, any other what its ``reset_parameters``
    draws. The draws are made on the CPU, so they are the same on every device, and other generators draw as
    before.

    Args:
        layers: Layers for which `can_redraw` is true.
        gains: The gains of orthogonal layers, from `orthogonal_gains`.
        seed: Seed of the draws.

    Returns:
        Values of the parameters' dtype, on their device.
    """
    fresh: Fresh = {}
    with _seeded(seed):
        for layer in layers:
            twin = _redrawn(layer)
            if layer in gains:
                orthogonal_(twin, gains[layer])
            pairs = zip(layer.parameters(), twin.parameters(), strict=True)
            for parameter, value in pairs:
                fresh[parameter] = send(value.detach().to(parameter.dtype), parameter.device)
    return fresh


@torch.no_grad()
def _redrawn(layer: nn.Module) -> nn.Module:
    """Return a copy on the CPU with new weights; those that ``reset_parameters`` does not set are NaN."""
    # In float32, because an orthogonal matrix needs the precision; nothing is read from the device.
    twin: Any = copy.deepcopy(layer).to_empty(device="cpu").float()
    for parameter in twin.parameters():
        parameter.fill_(math.nan)
    twin.reset_parameters()
    return twin


@torch.no_grad()
def draw_by(initialize: Callable[[], object], module: nn.Module, seed: int) -> Fresh:
    """Draw new values for all parameters of a module by a function that initializes it in place.

    The module has its own parameters and buffers back afterwards.

    Args:
        initialize: Initializes the module, with draws from PyTorch's generator of the CPU.
        module: The module.
        seed: Seed of the draws.
    """
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        with _seeded(seed):
            initialize()
            for each in module.modules():
                if isinstance(each, nn.Linear):
                    reset_sigmas_(each)
        return {parameter: parameter.detach().clone() for parameter in module.parameters()}
    finally:
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.detach().copy_(value)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generator of the CPU, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
