"""Temporary plain parameters in place of parametrized weights (weight or spectral normalization)."""

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
    """Replace parametrized weights by plain parameters within the context.

    On exit, the values of changed parameters are set through the ``right_inverse`` of their parametrizations.
    The layer's weight is then as close to the value as the parametrization allows. After an exception, no
    value is set.

    Args:
        module: Any module.
        kinds: The classes of the layers.

    Yields:
        The parameters that cannot be set because their parametrization has no inverse. They do not require a
        gradient; neither do parameters that depend on a frozen parameter.
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
            parametrization = _parametrization(layer, name)
            can_be_set = _can_be_set(parametrization, value)
            is_trained = all(parameter.requires_grad for parameter in parametrization.parameters())
            plain = nn.Parameter(value.clone(), requires_grad=can_be_set and is_trained)
            layer.register_parameter(name, plain)
            if is_trained and not can_be_set:
                fixed.add(plain)
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
    """Return the values of a layer's parametrized parameters."""
    values = {}
    # In evaluation mode, spectral normalization does not update its estimates.
    for name in cast(nn.ModuleDict, layer.parametrizations):
        with _in_mode(_parametrization(layer, name), training=False):
            values[name] = getattr(layer, name).detach().clone()
    return values


@torch.no_grad()
def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    setattr(layer, name, value)
    # Spectral normalization updates its estimates of the weight in training mode only.
    with _in_mode(_parametrization(layer, name), training=True):
        getattr(layer, name)


@torch.no_grad()
def _can_be_set(parametrization: ParametrizationList, value: Tensor) -> bool:
    try:
        copy.deepcopy(parametrization).right_inverse(value)
    except (RuntimeError, ValueError):  # torch raises these if there is no inverse
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
