"""Path-sensitive initialization: the scale of each layer depends on the paths through it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError, require_above, require_between, require_one_of
from lit_gfs.init.mirrored import can_mirror, first_layers, mirror_, mirrored_slopes
from lit_gfs.init.path_network import modules_run
from lit_gfs.init.paths import LAYERS, Chain, Paths, branch_scales, layer_weights, measure_paths
from lit_gfs.init.plain_weights import plain_weights
from lit_gfs.networks.heads import LinearHead
from lit_gfs.networks.trunks import MultiSkipTrunk

_GAIN = math.sqrt(2)
"""Gain of layers before an activation: a ReLU halves the mean square."""
_SKIP_GROWTH = 2.0
"""Growth of the energy by all skips of a `MultiSkipTrunk` together."""
Branching = Literal["path", "zero"]
"""Start of branches: all layers with one factor (``path``), or the last layer at 0 (``zero``)."""

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


class PathReport(NamedTuple):
    """Result of path-sensitive initialization; layers are given by their names."""

    shares: dict[str, float]
    """The share of path energy that crosses each trainable layer; see `path_shares`."""
    branch_scales: dict[str, float]
    """The factor on the weight of each scaled optional layer."""
    mirrored: list[str]
    """The layers with mirrored outputs."""
    zero_branches: list[str]
    """The layers and normalizations at the ends of branches whose weights became 0."""
    first_biases: list[str]
    """The first layers of mirrored chains whose biases were drawn."""
    left_alone: dict[str, str]
    """The trainable layers with unchanged weights, each with the reason."""


@torch.no_grad()
def path_sensitive_(
    module: nn.Module,
    example_input: Any,
    mirrored: bool | Literal["auto"] = False,
    head_gain: float = 1.0,
    growth: float = 2.0,
    first_bias: float = 0.0,
    branches: Branching = "path",
) -> PathReport:
    """Initialize a module by the energies of the paths through its layers, measured on its own forward.

    First, all linear and convolutional weights become orthogonal with gain sqrt(2), biases become 0, and
    normalizations become the identity. Then the scales follow the paths. `measure_paths` finds the paths
    without knowledge of the architecture.

    - *Branches.* A layer is optional if only some paths cross it, such as a layer of a residual branch. All
      optional layers get the same factor. With it, the branches together add ``growth - 1`` times the energy
      of the paths around them, for any number of branches and of layers per branch. For L branches of m
      layers the factor is about ``(log(growth) / L)^(1 / 2m)`` (Fixup uses L^(-1 / (2m - 2)), Zhang et al.
      2019, arXiv 1901.09321). A layer keeps its scale if a normalization hides it.
      With ``branches="zero"`` the last layer of each branch starts at 0, so the network starts as the paths
      around its branches (Fixup). The factor is then of the other layers of the branches alone, and follows
      from the same equation as if the last layers were not 0: about ``(log(growth) / L)^(1 / (2m - 2))``, the
      factor of Fixup for growth = e. If a normalization ends the branch, its weight becomes 0 instead (Goyal
      et al. 2017, arXiv 1706.02677). The last layer of a branch is an optional layer whose output is added to
      a tensor that fewer layers computed. It keeps its weight if an activation follows it (its gradient might
      be 0 for ever), a factor of 0 shuts the branch already, it is called elsewhere too, or its weight is
      parametrized.
    - *Skips.* A `MultiSkipTrunk` adds the same vector once per branch, so amplitudes add up instead of
      energies. Its ``skip_scale`` becomes z with ``(1 + L z)^2 = 2``.
    - *Concatenations.* If n layers concatenate the same tensor to their input, as in a `DenseTrunk`, each
      reads it with 1/n of its energy.
    - *Chains.* All layers of a chain, which every path crosses, get the same mean square weight. By Euler's
      theorem on homogeneous functions, ``sum(w * dR/dw)`` is the same for all of them, so equal weights mean
      equal gradients. The product of the scales does not change, and neither does the function. All layers
      whose scale a normalization hides form one such chain, because their gradients shrink as their weights
      grow.

    The output layers get gains of their own at the end. These layers stay unchanged: frozen ones, layers that
    forward does not run (such as the discriminator of a GAN), and layers with a parametrization without
    ``right_inverse``. Other parametrized weights are set through ``right_inverse``; spectral normalization
    hides the scale. Shared layers are initialized once. Weights are drawn on the CPU from torch's global
    generator.

    Args:
        module: Any module of linear and convolutional layers, activations, normalizations, sums, products,
            pooling and concatenations; it is changed in place. Attention and recurrence are not supported.
        example_input: Input of its forward: a tensor, a tuple of arguments or a dict of keywords. Only the
            shapes matter.
        mirrored: Whether plain chains start as linear maps; see `lit_gfs.init.mirrored`. ``auto`` mirrors
            them if there is a chain and all its widths are even.
        head_gain: Gain of the layers whose output the module returns. A `LinearHead` uses its own gain.
        growth: Factor of the energy by all branches together, more than 1. At 2 signals keep their size; a
            larger value gives the branches more weight.
        first_bias: Largest absolute bias of the first layer of each mirrored chain. The biases are drawn from
            U(-first_bias, first_bias), one for each unit. A mirrored chain without biases is a linear map of
            its input; with them, the units of the first layer bend at different places. The weights do not
            depend on this option.
        branches: Whether all layers of branches get one factor (``path``), or the last one starts at 0
            (``zero``).

    Returns:
        The measured shares and the applied changes.

    Raises:
        UserError: If an option is out of range, the module has no trainable layer, its forward does not run
            on path energies, ``mirrored`` does not apply, or ``first_bias`` is set without it.
    """
    require_between(0, math.inf, head_gain=head_gain)
    if not 0 <= first_bias < math.inf:
        raise UserError(f"first_bias is {first_bias}; expected a finite number of at least 0")
    if mirrored not in (True, False, "auto"):
        raise UserError(f"mirrored is {mirrored!r}; expected True, False or 'auto'")
    if first_bias and mirrored is False:
        raise UserError(
            f"first_bias is {first_bias}, but mirrored is False: biases are drawn in mirrored chains alone; "
            "expected first_bias=0, mirrored=True or mirrored='auto'"
        )
    require_one_of(get_args(Branching), branches=branches)
    require_above(1, growth=growth)
    with plain_weights(module, LAYERS) as fixed:
        return _initialize_(module, example_input, fixed, mirrored, head_gain, growth, first_bias, branches)


def _initialize_(
    module: nn.Module,
    example_input: Any,
    fixed: set[nn.Parameter],
    mirrored: bool | Literal["auto"],
    head_gain: float,
    growth: float,
    first_bias: float,
    branches: Branching,
) -> PathReport:
    # Select the trainable layers that forward runs, and note the reason for all others.
    all_names = layer_weights(module)
    names = {weight: name for weight, name in all_names.items() if weight.requires_grad}
    computed = {layer: name for name, layer in module.named_modules() if _is_computed(layer)}
    left_alone = dict.fromkeys(computed.values(), "the weight is computed of other parameters")
    left_alone |= {all_names[weight]: "its parametrization has no inverse" for weight in fixed}
    if names:
        ones = {weight: torch.ones((), dtype=torch.float64, device=weight.device) for weight in all_names}
        run, read = modules_run(module, example_input, ones)
        left_alone |= {name: "forward does not run it" for w, name in names.items() if w not in read}
        names = {weight: name for weight, name in names.items() if weight in read}
    if not names:
        reasons = (
            f" ({'; '.join(f'{name}: {why}' for name, why in left_alone.items())})" if left_alone else ""
        )
        raise UserError(
            f"{type(module).__name__} has no layer to initialize: expected at least one linear or "
            f"convolutional layer with a trainable weight{reasons}"
        )
    # Start from orthogonal weights, and measure the paths with them.
    unchanged = computed.keys() | {each for each in module.modules() if _has_one_of(fixed, each)}
    _reset_layers_(module, names, run - unchanged)
    paths = measure_paths(module, example_input)
    ends = _zeroable_ends(module, paths) if branches == "zero" else {}
    scales = branch_scales(module, example_input, paths, growth, unscaled=ends)
    # Heads are the layers whose output the module returns without an activation.
    heads = {origin.weight: head_gain for origin in paths.outputs if origin and origin.activation is None}
    for layer in module.modules():
        if isinstance(layer, LinearHead) and isinstance(layer.weight, nn.Parameter):
            heads[layer.weight] = layer.gain

    # These two draw weights anew, so they come before all scaling.
    _share_repeated_inputs_(paths)
    should_mirror = can_mirror(paths) if mirrored == "auto" else mirrored
    mirrored_names = mirror_(paths, names, _GAIN) if should_mirror else []
    _equalize_chains_(paths, heads, mirrored_slopes(paths) if should_mirror else {})
    # Branches and heads get their factors last, so the chains do not spread them over other layers.
    for weight, factor in (*scales.items(), *((head, gain / _GAIN) for head, gain in heads.items())):
        if weight.requires_grad:
            weight.mul_(factor)
    for parameter in ends:
        parameter.zero_()
    # Last, so that the weights are the same for every range of biases.
    first = first_layers(paths) if mirrored_names and first_bias else set()
    return PathReport(
        shares={name: paths.shares[weight] for weight, name in names.items()},
        branch_scales={name: scales[weight] for weight, name in names.items() if weight in scales},
        mirrored=mirrored_names,
        zero_branches=list(ends.values()),
        first_biases=_draw_biases_(module, first, names, first_bias),
        left_alone=left_alone,
    )


def _has_one_of(weights: Container[nn.Parameter], layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return isinstance(weight, nn.Parameter) and weight in weights


def _is_computed(layer: nn.Module) -> bool:
    """Return whether a layer's weight is computed, as by the hooks of the old ``nn.utils.weight_norm``."""
    return isinstance(layer, LAYERS) and not isinstance(layer.weight, nn.Parameter)


def _reset_layers_(module: nn.Module, names: dict[nn.Parameter, str], run: set[nn.Module]) -> None:
    """Set weights to orthogonal ones, biases to 0, normalizations to the identity, and the skips' scales."""
    for weight in names:
        _orthogonal_(weight, _GAIN)
    for layer in module.modules():
        # A network may use the weight of a layer without calling the layer.
        if layer not in run and not _has_one_of(names, layer):
            continue
        owned = {name: p for name, p in layer.named_parameters(recurse=False) if p.requires_grad}
        if isinstance(layer, _NORMS) and "weight" in owned:
            nn.init.ones_(owned["weight"])
        if isinstance(layer, (*LAYERS, *_NORMS)) and "bias" in owned:
            nn.init.zeros_(owned["bias"])
        if isinstance(layer, MultiSkipTrunk) and len(layer.branches):
            # Solves (1 + L z)^2 = growth for z.
            layer.skip_scale.fill_((math.sqrt(_SKIP_GROWTH) - 1) / len(layer.branches))


def _zeroable_ends(module: nn.Module, paths: Paths) -> dict[nn.Parameter, str]:
    """Return the weights at the ends of branches that may become 0, with the names of their modules.

    A parametrized weight is none of them: weight and spectral normalization divide by its norm.
    """
    scales = {end.scale for end in paths.branch_ends if end.scale.requires_grad}
    ends: dict[nn.Parameter, str] = {}
    for name, layer in module.named_modules():
        if _has_one_of(scales, layer) and not hasattr(layer, "parametrizations"):
            ends.setdefault(cast(nn.Parameter, layer.weight), name)
    return ends


def _share_repeated_inputs_(paths: Paths) -> None:
    """Divide the energy of a tensor that n layers concatenate to their input by n, in each of them."""
    times = Counter(id(part) for reading in paths.readings for part in reading.parts)
    for reading in paths.readings:
        widths = [part.shape[1] for part in reading.parts]
        counts = [times[id(part)] for part in reading.parts]
        weight = reading.weight
        if not weight.requires_grad or max(counts, default=1) == 1 or sum(widths) != weight.shape[1]:
            continue
        for block, count in zip(weight.split(widths, dim=1), counts, strict=True):
            _orthogonal_(block, _GAIN / math.sqrt(count))


def _equalize_chains_(
    paths: Paths, heads: dict[nn.Parameter, float], mirrored_slopes: dict[nn.Parameter, float]
) -> None:
    """Give the layers of each chain the same mean square weight."""
    # All chains whose scale a normalization hides are treated as one.
    normalized = [chain.weights for chain in paths.chains if chain.is_normalized]
    unnormalized = [chain for chain in paths.chains if not chain.is_normalized]
    for chain in (Chain(frozenset().union(*normalized), 0.0, True), *unnormalized):
        members = [weight for weight in paths.shares if weight in chain.weights]
        weights = [weight for weight in members if weight.requires_grad and weight not in heads]
        if not weights:
            continue
        # The geometric mean keeps the product of the scales, and so the function.
        sizes = torch.stack([weight.double().square().mean().sqrt() for weight in weights])
        common = sizes.log().mean().exp()
        if not chain.is_normalized:
            # The gain sqrt(2) compensates for an activation. Take it back for layers without one.
            # A leaky ReLU is a part of an activation; mirrored layers have accounted for the rest of it.
            rests = (math.log2(1 + mirrored_slopes.get(weight, 0.0) ** 2) for weight in members)
            activations = chain.activations + sum(rests)
            common *= 2 ** (min(activations / len(weights) - 1, 0) / 2)
        for weight, size in zip(weights, sizes, strict=True):
            weight.mul_(common / size)


def _draw_biases_(
    module: nn.Module, chosen: set[nn.Parameter], names: dict[nn.Parameter, str], largest: float
) -> list[str]:
    """Draw the biases of layers uniformly; return the names of those that have trainable biases."""
    drawn: dict[Tensor, str] = {}
    for layer in module.modules():
        if isinstance(layer, LAYERS) and _has_one_of(chosen, layer):
            bias = layer.bias
            if bias is not None and bias.requires_grad and bias not in drawn:
                # On the CPU, for the same biases on every device.
                bias.copy_(torch.empty(bias.shape).uniform_(-largest, largest))
                drawn[bias] = names[cast(nn.Parameter, layer.weight)]
    return list(drawn.values())


def _orthogonal_(weight: Tensor, gain: float) -> None:
    # Draw on the CPU for the same weights on every device, and in float32 because QR needs the precision.
    weight.copy_(nn.init.orthogonal_(torch.empty(weight.shape), gain))
