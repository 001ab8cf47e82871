"""Names of layers for readers: counted from 1, and alike in all agents."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from lit_gfs.networks.layers import named_layers, own_parameters

Path = tuple[str, ...]


def numbered_layers(module: nn.Module) -> dict[str, nn.Module]:
    """List the layers of a module by names that count layers, not modules.

    PyTorch numbers the modules of a container from 0, activations included. Here the layers with a matrix
    are counted, from 1 and with two digits, so that names sort: ``trunk.layers.0``, ``trunk.layers.3`` become
    ``trunk.layer_01``, ``trunk.layer_02``. Other layers are counted by their kind: ``trunk.layer_norm_01``.
    Inside of a numbered part, the only layer with a matrix has the name of the part.

    Args:
        module: Any module.

    Returns:
        Layers by name, in registration order, as from `lit_gfs.networks.named_layers`.
    """
    layers = named_layers(module)
    paths = [tuple(name.split(".")) for name in layers]
    has_matrix = [any(p.ndim >= 2 for p in own_parameters(layer)) for layer in layers.values()]
    labels = _labels(paths, has_matrix, list(layers.values()))
    names = [_name(path, labels) for path in paths]
    # A module of the user may have a name that is given here to another.
    return dict(zip(names, layers.values(), strict=True)) if len(set(names)) == len(names) else layers


def _labels(
    paths: Sequence[Path], has_matrix: Sequence[bool], layers: Sequence[nn.Module]
) -> dict[Path, str]:
    """Return what stands for each numbered module, by its path; empty where nothing needs to."""
    inside: dict[Path, list[int]] = {}
    for index, path in enumerate(paths):
        for length in range(1, len(path) + 1):
            if path[length - 1].isdigit():
                inside.setdefault(path[:length], []).append(index)
    counts: dict[tuple[Path, str], int] = {}
    matrices: dict[Path, list[Path]] = {}
    labels = {}
    for path, indices in inside.items():
        container, is_nested = path[:-1], len(path) < 2 or path[-2].isdigit()
        kinds = [] if is_nested else [_singular(path[-2])]
        if any(has_matrix[index] for index in indices):
            matrices.setdefault(container, []).append(path)
        else:
            kinds.append(_kind(layers[indices[0]]))
        kind = "_".join(kinds) or "layer"
        counts[container, kind] = number = counts.get((container, kind), 0) + 1
        labels[path] = f"{kind}_{number:02d}"
    for container, its in matrices.items():
        if len(its) == 1 and container and container[-1].isdigit():
            labels[its[0]] = ""
    return labels


def _name(path: Path, labels: dict[Path, str]) -> str:
    parts: list[str] = []
    for length, part in enumerate(path, start=1):
        if not part.isdigit():
            parts.append(part)
            continue
        if length >= 2 and not path[length - 2].isdigit():
            parts.pop()  # the container's name is in the label
        if label := labels[path[:length]]:
            parts.append(label)
    return ".".join(parts)


def _singular(word: str) -> str:
    return re.sub(r"(?<=ch)es$|(?<!s)s$", "", word)


def _kind(layer: nn.Module) -> str:
    name = type(layer).__name__.lower()
    return "norm" if "norm" in name else name
