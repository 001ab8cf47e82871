"""Positions of matrices in a network: first, hidden or last, found by a run of its forward."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._pytree import tree_leaves, tree_map

from lit_gfs.networks.example_run import call, device_of, evaluating
from lit_gfs.networks.layers import own_parameters

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Position(NamedTuple):
    """Where a layer with a matrix is in its network."""

    kind: Literal["first", "hidden", "last"]
    """``first`` if it reads no other layer, else ``last`` if no other layer reads it, else ``hidden``."""
    fan_in: int
    """The number of units that it reads: input features or channels. A linear layer that reads the flattened
    image of a convolution counts the channels, because the number of positions does not grow with width."""


def is_matrix(parameter: Tensor) -> bool:
    """Return whether a parameter is a matrix: it has at least two dimensions, as a convolution's weight."""
    return parameter.ndim >= 2


def layer_positions(module: nn.Module, example_input: Any) -> dict[nn.Module, Position]:
    """Find the positions of all submodules that own a matrix, from the graph that autograd records.

    A layer reads another one if autograd finds a path from the one's input to the other's output that crosses
    no layer in between. So the positions are right for any number of networks, such as an actor and a critic,
    and for any wiring. A network cut by ``detach`` counts as two.

    Args:
        module: Any module; its parameters, buffers and modes do not change.
        example_input: Input of its forward: a tensor, a tuple of arguments or a dict of keywords.

    Returns:
        The positions by module, in the order of the first calls. A submodule that forward does not call has
        none, and neither has ``module`` itself.
    """
    reads = layer_reads(module, example_input)
    read = {source for layer, sources in reads.items() for source in sources if source is not layer}
    positions = {}
    for layer, sources in reads.items():
        kind: Literal["first", "hidden", "last"] = (
            "first" if not sources else "hidden" if layer in read else "last"
        )
        positions[layer] = Position(kind, _fan_in(layer, sources))
    return positions


def last_layers(module: nn.Module, example_input: Any, count: int) -> list[nn.Module]:
    """Find the layers with a matrix that are closest to the outputs of a network.

    The distance of a layer is the number of layers behind it on the longest path to an output. So heads have
    the distance 0, and the branches of a residual network count one after the other.

    Args:
        module: Any module; it does not change.
        example_input: Input of its forward, as for `layer_positions`.
        count: The layers with a distance below this are returned.

    Returns:
        The layers, in the order of their first calls.
    """
    reads = layer_reads(module, example_input)
    distance = dict.fromkeys(reads, 0)
    # Readers are called after their sources, except where a layer is called again.
    for layer, sources in reversed(reads.items()):
        for source in sources:
            if source is not layer:
                distance[source] = max(distance[source], distance[layer] + 1)
    return [layer for layer in reads if distance[layer] < count]


def layer_reads(module: nn.Module, example_input: Any) -> dict[nn.Module, set[nn.Module]]:
    """Find which submodules with a matrix read which others, from the graph that autograd records.

    Args:
        module: Any module; it does not change.
        example_input: Input of its forward, as for `layer_positions`.

    Returns:
        The layers that each layer reads without another one in between, in the order of the first calls.
    """
    layers = [each for each in module.modules() if each is not module and _owns_matrix(each)]
    inputs: dict[nn.Module, list[Any]] = {}
    written: dict[Any, nn.Module] = {}

    def note_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.setdefault(layer, []).extend(_nodes((args, kwargs)))

    def note_output(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        written.update(dict.fromkeys(_nodes(output), layer))

    handles = [layer.register_forward_pre_hook(note_input, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(note_output) for layer in layers]
    try:
        # The generators forget what forward draws.
        with evaluating(module), torch.random.fork_rng(), torch.enable_grad():
            call(module, tree_map(partial(_with_gradient, device=device_of(module)), example_input))
    finally:
        for handle in handles:
            handle.remove()
    return {layer: _written_before(nodes, written) for layer, nodes in inputs.items()}


def _owns_matrix(module: nn.Module) -> bool:
    # What a parametrization holds belongs to the layer that it parametrizes.
    return not isinstance(module, ParametrizationList) and any(map(is_matrix, own_parameters(module)))


def _fan_in(layer: nn.Module, sources: set[nn.Module]) -> int:
    if isinstance(layer, _CONVOLUTIONS):
        return layer.in_channels
    if isinstance(layer, nn.Linear):
        channels = [each.out_channels for each in sources if isinstance(each, _CONVOLUTIONS)]
        return min([layer.in_features, *channels])
    matrices = [each for each in own_parameters(layer) if is_matrix(each)]
    return max(matrix.shape[1] for matrix in matrices)


def _written_before(nodes: list[Any], written: dict[Any, nn.Module]) -> set[nn.Module]:
    """Return the layers that wrote what these nodes of autograd's graph read, up to the nearest ones."""
    sources: set[nn.Module] = set()
    waiting, seen = list(nodes), set(nodes)
    while waiting:
        node = waiting.pop()
        if node in written:
            sources.add(written[node])
            continue
        before = {each for each, _ in node.next_functions if each is not None} - seen
        seen |= before
        waiting += before
    return sources


def _nodes(values: Any) -> list[Any]:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]


def _with_gradient(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Behind frozen layers there is a graph too then. The product is no leaf, so it may change in place.
    value = value.detach().to(device)
    return value.clone().requires_grad_() * 1 if value.is_floating_point() else value
