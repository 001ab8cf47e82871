"""Mirrored initialization: chains of layers start as linear maps, at any depth."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError
from lit_gfs.init.path_network import Origin
from lit_gfs.init.paths import Paths

_MIRRORABLE = ("relu", "gelu", "silu", "leaky_relu")
"""Activations f with f(a) - f(-a) = (1 + s) a, where s is the slope of a leaky ReLU, and else 0."""


def mirrored_layers(paths: Paths) -> tuple[set[nn.Parameter], set[nn.Parameter]]:
    """Find the layers of plain chains.

    All paths cross a layer of a plain chain, and only layers of the chain read its activated output.

    Args:
        paths: The measured paths of a module.

    Returns:
        The weights of the layers with mirrored outputs (writers), and of the layers that read them (readers).
    """
    # Candidates: trainable layers that every path crosses and that forward calls once.
    calls = Counter(reading.weight for reading in paths.readings)
    plain = {w for w, share in paths.shares.items() if share == 1 and w.requires_grad and calls[w] == 1}
    sources = {reading.origin.weight for reading in paths.readings if reading.origin} & plain
    sources |= {origin.weight for origin in paths.outputs if origin} & plain
    # Drop a candidate if any of its readers cannot undo the mirroring.
    for reading in paths.readings:
        origin = reading.origin
        if origin is not None and not (
            _is_mirrorable(origin) and reading.weight in plain and _reads_all(reading.weight, origin.weight)
        ):
            sources.discard(origin.weight)
    for origin in paths.outputs:
        if origin is not None and not _is_mirrorable(origin):
            sources.discard(origin.weight)
    # Writers and readers come in pairs.
    links = [(r.origin.weight, r.weight) for r in paths.readings if r.origin and r.origin.weight in sources]
    readers = {reader for _, reader in links}
    return sources & (readers | {source for source, _ in links}), readers


def first_layers(paths: Paths) -> set[nn.Parameter]:
    """Return the weights of the layers that begin plain chains: the writers that read no mirrored output.

    Args:
        paths: The measured paths of a module.
    """
    writers, readers = mirrored_layers(paths)
    return writers - readers


def mirrored_slopes(paths: Paths) -> dict[nn.Parameter, float]:
    """Return the slope below 0 of the activation that follows each layer with mirrored outputs.

    Args:
        paths: The measured paths of a module.
    """
    writers, _ = mirrored_layers(paths)
    origins = (*(reading.origin for reading in paths.readings), *paths.outputs)
    return {origin.weight: origin.slope for origin in origins if origin and origin.weight in writers}


def can_mirror(paths: Paths) -> bool:
    """Return whether a module has a plain chain, and all writers in its chains have an even width.

    Args:
        paths: The measured paths of the module.
    """
    writers, _ = mirrored_layers(paths)
    return _has_chain(paths, writers) and all(len(weight) % 2 == 0 for weight in writers)


@torch.no_grad()
def mirror_(paths: Paths, names: dict[nn.Parameter, str], gain: float) -> list[str]:
    """Initialize plain chains as "looks linear" networks (Balduzzi et al. 2017, arXiv 1702.08591).

    The output of a layer consists of two halves a and -a. An activation f with f(a) - f(-a) = (1 + s) a
    follows; s is the slope of a leaky ReLU below 0, and 0 for ReLU, GELU and SiLU. So the next layer can
    recover a from f(a) and f(-a). The weight of the first layer of a chain is ``[W; -W]``, of a middle layer
    ``[[W, -W], [-W, W]] / (1 + s)``, and of the last layer ``[W, -W] / (1 + s)``. The chain keeps the
    distances between its inputs, because W is orthogonal, with gain 1 except in the last layer.

    Args:
        paths: The measured paths of the module.
        names: The layers' names by their weights.
        gain: Singular value of W in the last layer of a chain.

    Returns:
        The names of the layers with mirrored outputs.

    Raises:
        UserError: If there is no plain chain, or a writer in a chain has an odd width.
    """
    writers, readers = mirrored_layers(paths)
    if not _has_chain(paths, writers):
        raise UserError(
            "mirrored initialization needs a plain chain of linear or convolutional layers with ReLU, "
            "leaky ReLU, GELU or SiLU between, of which the module has none; expected mirrored=False"
        )
    for weight in names:
        if weight in writers and len(weight) % 2:
            raise UserError(
                f"mirrored initialization needs layers of even width, but {names[weight]!r} has "
                f"{len(weight)} outputs; expected {len(weight) - 1} or {len(weight) + 1}"
            )
    slopes = mirrored_slopes(paths)
    read = {r.weight: slopes[r.origin.weight] for r in paths.readings if r.origin and r.weight in readers}
    for weight in names:
        if weight not in writers | readers:
            continue
        # Draw the block W, then repeat it with signs for mirrored inputs and outputs.
        outputs, inputs, *kernel = weight.shape
        block = torch.empty(
            outputs // (1 + (weight in writers)), inputs // (1 + (weight in readers)), *kernel
        )
        scale = 1.0 if weight in writers else gain
        nn.init.orthogonal_(block, scale / (1 + read.get(weight, 0.0)))
        weight.copy_(_mirrored(_mirrored(block, 1, weight in readers), 0, weight in writers))
    return [name for weight, name in names.items() if weight in writers]


def _is_mirrorable(origin: Origin) -> bool:
    return origin.activation in _MIRRORABLE and origin.slope > -1


def _has_chain(paths: Paths, writers: set[nn.Parameter]) -> bool:
    # In a residual network, a single layer after the branches is not a chain.
    has_branches = any(0 < share < 1 for share in paths.shares.values())
    return len(writers) > (1 if has_branches else 0)


def _mirrored(block: Tensor, dim: int, is_mirrored: bool) -> Tensor:
    return torch.cat([block, -block], dim) if is_mirrored else block


def _reads_all(weight: nn.Parameter, source: nn.Parameter) -> bool:
    """Return whether the first half of a layer's inputs is the first half of its source's outputs."""
    if source.ndim > 2:
        # The channel is the slowest index of a flattened image. A grouped convolution reads only some
        # channels.
        return (weight.ndim == 2 and weight.shape[1] % len(source) == 0) or weight.shape[1] == len(source)
    return weight.shape[1] == len(source)
