"""Parametrized weights (weight or spectral normalization ...), dealt with as if layers owned them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, type_before_parametrizations


@contextmanager
def plain_weights(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[set[nn.Parameter]]:
    """Give layers parameters of their own in the place of parametrized ones, for as long as this lasts.

    A parameter that was changed meanwhile is then set through its parametrization's ``right_inverse``; what
    the parametrization allows of it is what the layer has in the end. After an exception nothing is set.

    Args:
        module: Any module.
        kinds: The classes of the layers.

    Yields:
        The parameters that cannot be set, as a parametrization has no inverse. They require no gradient, and
        neither do those that are made of something frozen.
    """
    layers = {
        layer: type(layer)
        for layer in module.modules()
        if isinstance(layer, kinds) and is_parametrized(layer)
    }
    before = {layer: _values(layer) for layer in layers}
    fixed: set[nn.Parameter] = set()
    for layer, values in before.items():
        layer.__class__ = type_before_parametrizations(layer)
        for name, value in values.items():
            made_of = _parametrization(layer, name)
            can_be_set = _can_be_set(made_of, value)
            is_trained = all(parameter.requires_grad for parameter in made_of.parameters())
            stand_in = nn.Parameter(value.clone(), requires_grad=can_be_set and is_trained)
            layer.register_parameter(name, stand_in)
            if is_trained and not can_be_set:
                fixed.add(stand_in)
    after: dict[nn.Module, dict[str, Tensor]] = {}
    try:
        yield fixed
    finally:
        for layer, cls in layers.items():
            after[layer] = {name: layer._parameters.pop(name).detach() for name in before[layer]}  # type: ignore[union-attr]
            layer.__class__ = cls
    for layer, values in after.items():
        for name, value in values.items():
            if not torch.equal(value, before[layer][name]):
                _set(layer, name, value)


@torch.no_grad()
def _values(layer: nn.Module) -> dict[str, Tensor]:
    """Return what the layer's parametrized parameters are; in evaluation mode nothing is estimated anew."""
    values = {}
    for name in cast(nn.ModuleDict, layer.parametrizations):
        with _in_mode(_parametrization(layer, name), training=False):
            values[name] = getattr(layer, name).detach().clone()
    return values


@torch.no_grad()
def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    setattr(layer, name, value)
    # Spectral normalization keeps estimates of a weight, which are brought up to date in training mode alone.
    with _in_mode(_parametrization(layer, name), training=True):
        getattr(layer, name)


@torch.no_grad()
def _can_be_set(parametrization: ParametrizationList, value: Tensor) -> bool:
    try:
        copy.deepcopy(parametrization).right_inverse(value)
    except (RuntimeError, ValueError):  # what torch raises where there is no inverse
        return False
    return True


@contextmanager
def _in_mode(parametrization: ParametrizationList, training: bool) -> Iterator[None]:
    modes = [(each, each.training) for each in parametrization.modules()]
    parametrization.train(training)
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


def _parametrization(layer: nn.Module, name: str) -> ParametrizationList:
    return cast(ParametrizationList, cast(nn.ModuleDict, layer.parametrizations)[name])
