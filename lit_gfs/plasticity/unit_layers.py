"""The units of a network: for each hidden layer, which weights lead into a unit, and which lead out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lit_gfs.networks.example_run import call, evaluating
from lit_gfs.plasticity.unit_trace import Reading, UnitTrace, Written

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Share(NamedTuple):
    """The entries of a parameter, along one dimension, that belong to the units of a layer."""

    parameter: nn.Parameter
    units: Tensor
    """For each entry along the dimension, the index of its unit; the number of units if it has none."""


class UnitLayer(NamedTuple):
    """A hidden layer whose units can be reset. A unit is an output, or an output channel of a convolution."""

    layer: nn.Module
    """The layer that computes the units: its weight ``(units, *inputs)`` and bias ``(units,)`` lead in."""
    outgoing: list[Share]
    """The weights ``(outputs, inputs, *kernel)`` that lead out, with their inputs' units."""
    norms: list[Share]
    """Parameters ``(features,)`` of normalizations between the layer and its activation; they lead in too."""
    activations: int
    """Number of activation functions that read the layer's outputs."""

    @property
    def weight(self) -> nn.Parameter:
        """The incoming weights."""
        return cast(nn.Parameter, self.layer.weight)

    def parameters(self) -> list[nn.Parameter]:
        """Return all parameters with entries of the units."""
        return [*self.layer.parameters(), *(each.parameter for each in (*self.outgoing, *self.norms))]


class UnitMap(NamedTuple):
    """The hidden layers of a network, by name."""

    layers: dict[str, UnitLayer]
    left_out: dict[str, str]
    """The hidden layers whose units cannot be reset, each with the reason."""


@torch.no_grad()
def map_units(module: nn.Module, example_input: Any, layers: Mapping[str, nn.Module]) -> UnitMap:
    """Find the incoming and outgoing weights of all hidden units, by a run of the module's forward.

    The weights that lead out of a unit are those that read its activated output. Between may be views (such
    as the flattened image in front of a linear layer), pooling over positions, dropout, concatenations,
    products with constants, and normalizations. Several layers may read a unit, as an actor and a critic do.

    A layer is left out if the units' outputs are used in another way: added to a residual stream, read before
    their activation, returned by forward, or read by a frozen layer, a function that is not known or a weight
    that is computed of others. So of a residual branch of two layers, the first has units. Forward must show
    all that reads a unit.

    Args:
        module: Any module; it does not change.
        example_input: Input of its forward, on the module's device: a tensor, a tuple of arguments or a dict
            of keywords. A batch of one is enough.
        layers: The layers to look at by name. Others may read their units.

    Returns:
        The map. Output layers, whose outputs forward returns without an activation, are in neither part of
        it.
    """
    by_weight: dict[nn.Parameter, nn.Module] = {
        weight: each
        for each in module.modules()
        if isinstance(each, _LAYERS) and (weight := each._parameters.get("weight")) is not None
    }
    trace = UnitTrace(by_weight)
    with evaluating(module), torch.random.fork_rng(devices=[]), trace:
        output = call(module, example_input)
    trace.finish(output)
    calls = Counter(id(each.layer) for each in trace.written)
    found, left_out = {}, {}
    for name, layer in layers.items():
        written = next((each for each in trace.written if each.layer is layer), None)
        if written is None or (not written.activations and not written.reason):
            continue  # not run by forward, without a weight of its own, or an output layer
        unit_layer = _unit_layer(written, trace)
        reason = _obstacle(written, unit_layer, calls[id(layer)])
        if reason:
            left_out[name] = reason
        else:
            found[name] = unit_layer
    return UnitMap(found, left_out)


def _unit_layer(written: Written, trace: UnitTrace) -> UnitLayer:
    outgoing, norms = (_shares(written, readings) for readings in (trace.readings, trace.norms))
    return UnitLayer(written.layer, outgoing, norms, written.activations)


def _shares(written: Written, readings: list[Reading]) -> list[Share]:
    shares = []
    for parameter, labels in readings:
        units = labels - written.first
        is_own = (units >= 0) & (units < written.units)
        if is_own.any():
            shares.append(Share(parameter, torch.where(is_own, units, written.units)))
    return shares


def _obstacle(written: Written, found: UnitLayer, calls: int) -> str:
    """Return why the units of a layer cannot be reset; empty if they can."""
    if calls > 1:
        return "forward runs it more than once"
    if not all(parameter.requires_grad for parameter in written.layer.parameters()):
        return "it is frozen"
    if written.reason:
        return written.reason
    return "" if found.outgoing else "nothing reads its outputs"
