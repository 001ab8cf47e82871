"""Mirrored initialization: chains of layers that compute a linear map, however deep they are."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError
from lit_gfs.init.paths import Paths

_MIRRORABLE = ("relu", "gelu", "silu")
"""Activations f with f(a) - f(-a) = a."""


def mirrored_layers(paths: Paths) -> tuple[set[nn.Parameter], set[nn.Parameter]]:
    """Find the layers of plain chains: needed layers whose output only other needed layers read, activated.

    Args:
        paths: What was measured of a module's paths.

    Returns:
        The weights of the layers that put out mirrored halves, and of those that read them.
    """
    calls = Counter(reading.weight for reading in paths.readings)
    plain = {w for w, share in paths.shares.items() if share == 1 and w.requires_grad and calls[w] == 1}
    sources = {reading.origin.weight for reading in paths.readings if reading.origin} & plain
    sources |= {origin.weight for origin in paths.outputs if origin} & plain
    for reading in paths.readings:
        origin = reading.origin
        if origin is not None and not (
            origin.activation in _MIRRORABLE
            and reading.weight in plain
            and _reads_all(reading.weight, origin.weight)
        ):
            sources.discard(origin.weight)
    for origin in paths.outputs:
        if origin is not None and origin.activation not in _MIRRORABLE:
            sources.discard(origin.weight)
    links = [(r.origin.weight, r.weight) for r in paths.readings if r.origin and r.origin.weight in sources]
    readers = {reader for _, reader in links}
    return sources & (readers | {source for source, _ in links}), readers


def can_mirror(paths: Paths) -> bool:
    """Return whether a module has a plain chain, and all layers in its chains have an even number of outputs.

    Args:
        paths: What was measured of the module's paths.
    """
    writers, _ = mirrored_layers(paths)
    return _has_chain(paths, writers) and all(len(weight) % 2 == 0 for weight in writers)


@torch.no_grad()
def mirror_(paths: Paths, names: dict[nn.Parameter, str], gain: float) -> list[str]:
    """Make plain chains mirrored: "looks linear" (Balduzzi et al. 2017, arXiv 1702.08591).

    A layer's output is made of two halves a and -a. Behind ReLU, GELU or SiLU, of which f(a) - f(-a) = a, the
    next layer puts a together again: its weight is ``[[W, -W], [-W, W]]``, that of a chain's first layer
    ``[W; -W]``, of its last ``[W, -W]``. Features then stay as far apart as inputs are. W is orthogonal: an
    isometry where there is another layer to follow.

    Args:
        paths: What was measured of the module's paths.
        names: The layers' names by their weights.
        gain: Singular value of W in a chain's last layer.

    Returns:
        The names of the layers whose output is mirrored.

    Raises:
        UserError: If there is no plain chain, or a layer in one has an odd number of outputs.
    """
    writers, readers = mirrored_layers(paths)
    if not _has_chain(paths, writers):
        raise UserError(
            "mirrored initialization needs a plain chain of linear or convolutional layers with ReLU, GELU "
            "or SiLU between, of which the module has none; expected mirrored=False"
        )
    for weight in names:
        if weight in writers and len(weight) % 2:
            raise UserError(
                f"mirrored initialization needs layers of even width, but {names[weight]!r} has "
                f"{len(weight)} outputs; expected {len(weight) - 1} or {len(weight) + 1}"
            )
    for weight in names:
        if weight not in writers | readers:
            continue
        outputs, inputs, *kernel = weight.shape
        block = torch.empty(
            outputs // (1 + (weight in writers)), inputs // (1 + (weight in readers)), *kernel
        )
        nn.init.orthogonal_(block, 1.0 if weight in writers else gain)
        weight.copy_(_mirrored(_mirrored(block, 1, weight in readers), 0, weight in writers))
    return [name for weight, name in names.items() if weight in writers]


def _has_chain(paths: Paths, writers: set[nn.Parameter]) -> bool:
    # One layer behind the branches of a residual network is not what anybody means by a chain.
    has_branches = any(0 < share < 1 for share in paths.shares.values())
    return len(writers) > (1 if has_branches else 0)


def _mirrored(block: Tensor, dim: int, wanted: bool) -> Tensor:
    return torch.cat([block, -block], dim) if wanted else block


def _reads_all(weight: nn.Parameter, source: nn.Parameter) -> bool:
    """Whether a layer's first half of inputs is its source's first half of outputs."""
    if source.ndim > 2:
        # Channels come first where a convolution's output is flattened; groups would read a part of them.
        return (weight.ndim == 2 and weight.shape[1] % len(source) == 0) or weight.shape[1] == len(source)
    return weight.shape[1] == len(source)
