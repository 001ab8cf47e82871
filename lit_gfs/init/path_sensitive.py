"""Path-sensitive initialization: a layer starts at the scale that the paths through it ask for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError, require_between
from lit_gfs.init.mirrored import can_mirror, mirror_
from lit_gfs.init.path_network import modules_run
from lit_gfs.init.paths import LAYERS, Chain, Paths, branch_scales, layer_weights, measure_paths
from lit_gfs.init.plain_weights import plain_weights
from lit_gfs.networks.heads import LinearHead
from lit_gfs.networks.trunks import MultiSkipTrunk

_GAIN = math.sqrt(2)
_SKIP_GROWTH = 2.0
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


class PathReport(NamedTuple):
    """What path-sensitive initialization found and did; layers by their names."""

    shares: dict[str, float]
    """The share of path energy that crosses each trainable layer; see `path_shares`."""
    branch_scales: dict[str, float]
    """The factor on the weight of each optional layer that was scaled."""
    mirrored: list[str]
    """The layers whose output is mirrored."""
    left_alone: dict[str, str]
    """The trainable layers whose weights are as they were, each with the reason."""


@torch.no_grad()
def path_sensitive_(
    module: nn.Module,
    example_input: Any,
    mirrored: bool | Literal["auto"] = False,
    head_gain: float = 1.0,
    growth: float = 2.0,
) -> PathReport:
    """Initialize a module by what the paths through its layers carry, measured on its own forward.

    All linear and convolutional weights become orthogonal with gain sqrt(2), biases 0, normalizations the
    identity. Then scales follow the paths, which `measure_paths` finds without knowing the architecture:

    - *Branches.* A layer that only some paths cross is optional, as on a residual branch. All optional layers
      get one factor, such that branches together add ``growth - 1`` times the energy of the paths around
      them, however many branches there are, and layers in each: for L branches of m layers about
      ``(log(growth) / L)^(1 / 2m)`` (Zhang et al. 2019, Fixup, arXiv 1901.09321, has L^(-1 / (2m - 2))).
      Layers whose scale a normalization hides are left as they are.
    - *Skips.* What enters a `MultiSkipTrunk` again and again is the same vector, so that amplitudes add, not
      energies: its ``skip_scale`` becomes z with ``(1 + L z)^2 = 2``.
    - *Concatenations.* Where n layers concatenate the same tensor to what they read, as in a `DenseTrunk`,
      each reads it with 1/n of its energy.
    - *Chains.* Layers that every path crosses share one factor per activation, and get the same mean square
      weight: by Euler's theorem on homogeneous functions ``sum(w * dR/dw)`` is the same for all of them, so
      that equal weights mean equal gradients. The product over the layers, and with it the function, stays.
      All that normalizations hide the scale of is one such chain: there a gradient is the smaller the larger
      the weights are.

    The last layers come after that, with gains of their own. Frozen parameters stay as they are, and so do
    layers that forward does not run, such as a GAN's discriminator; shared ones are initialized once. A
    parametrized weight is set through its parametrization's ``right_inverse``, and without one the layer
    stays as it is; spectral normalization hides the scale. Weights are drawn on the CPU, from torch's global
    generator.

    Args:
        module: Any module of linear and convolutional layers, activations, normalizations, sums, products,
            pooling and concatenations; it is changed in place. Attention and recurrence are not followed.
        example_input: What its forward takes: a tensor, a tuple of arguments or a dict of keywords, of which
            only the shapes matter.
        mirrored: Whether plain chains start as linear maps; see `lit_gfs.init.mirrored`. ``auto`` does so
            where there is a chain of even widths, and nothing elsewhere.
        head_gain: Gain of layers whose output the module returns. A `LinearHead` keeps its own.
        growth: What branches multiply the energy by, more than 1. At 2 signals keep their size; more lets the
            branches weigh more.

    Returns:
        What was measured and done.

    Raises:
        UserError: If an option is out of range, the module has no trainable layer, its forward does not run
            on path energies, or ``mirrored`` does not apply.
    """
    require_between(0, math.inf, head_gain=head_gain)
    if mirrored not in (True, False, "auto"):
        raise UserError(f"mirrored is {mirrored!r}; expected True, False or 'auto'")
    if growth <= 1:
        raise UserError(f"growth is {growth}; expected a number above 1")
    with plain_weights(module, LAYERS) as fixed:
        return _initialize_(module, example_input, fixed, mirrored, head_gain, growth)


def _initialize_(
    module: nn.Module,
    example_input: Any,
    fixed: set[nn.Parameter],
    mirrored: bool | Literal["auto"],
    head_gain: float,
    growth: float,
) -> PathReport:
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
    alone = computed.keys() | {each for each in module.modules() if _has_one_of(fixed, each)}
    _start_(module, names, run - alone)
    paths = measure_paths(module, example_input)
    scales = branch_scales(module, example_input, paths, growth)
    heads = {origin.weight: head_gain for origin in paths.outputs if origin and origin.activation is None}
    for layer in module.modules():
        if isinstance(layer, LinearHead) and isinstance(layer.weight, nn.Parameter):
            heads[layer.weight] = layer.gain

    _share_repeated_inputs_(paths)
    wanted = can_mirror(paths) if mirrored == "auto" else mirrored
    mirrored_names = mirror_(paths, names, _GAIN) if wanted else []
    _equalize_chains_(paths, heads)
    for weight, factor in (*scales.items(), *((head, gain / _GAIN) for head, gain in heads.items())):
        if weight.requires_grad:
            weight.mul_(factor)
    return PathReport(
        shares={name: paths.shares[weight] for weight, name in names.items()},
        branch_scales={name: scales[weight] for weight, name in names.items() if weight in scales},
        mirrored=mirrored_names,
        left_alone=left_alone,
    )


def _has_one_of(weights: Container[nn.Parameter], layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return isinstance(weight, nn.Parameter) and weight in weights


def _is_computed(layer: nn.Module) -> bool:
    """Whether a layer's weight is no parameter, as older functions than parametrizations make it."""
    return isinstance(layer, LAYERS) and not isinstance(layer.weight, nn.Parameter)


def _start_(module: nn.Module, names: dict[nn.Parameter, str], run: set[nn.Module]) -> None:
    for weight in names:
        _orthogonal_(weight, _GAIN)
    for layer in module.modules():
        # Some networks use a layer's weight without calling the layer.
        if layer not in run and not _has_one_of(names, layer):
            continue
        owned = {name: p for name, p in layer.named_parameters(recurse=False) if p.requires_grad}
        if isinstance(layer, _NORMS) and "weight" in owned:
            nn.init.ones_(owned["weight"])
        if isinstance(layer, (*LAYERS, *_NORMS)) and "bias" in owned:
            nn.init.zeros_(owned["bias"])
        if isinstance(layer, MultiSkipTrunk) and len(layer.branches):
            layer.skip_scale.fill_((math.sqrt(_SKIP_GROWTH) - 1) / len(layer.branches))


def _share_repeated_inputs_(paths: Paths) -> None:
    """Let what several layers concatenate to their input enter each with its part of the energy."""
    times = Counter(id(part) for reading in paths.readings for part in reading.parts)
    for reading in paths.readings:
        widths = [part.shape[1] for part in reading.parts]
        counts = [times[id(part)] for part in reading.parts]
        weight = reading.weight
        if not weight.requires_grad or max(counts, default=1) == 1 or sum(widths) != weight.shape[1]:
            continue
        for block, count in zip(weight.split(widths, dim=1), counts, strict=True):
            _orthogonal_(block, _GAIN / math.sqrt(count))


def _equalize_chains_(paths: Paths, heads: dict[nn.Parameter, float]) -> None:
    hidden = [chain.weights for chain in paths.chains if chain.is_normalized]
    felt = [chain for chain in paths.chains if not chain.is_normalized]
    for chain in (Chain(frozenset().union(*hidden), 0.0, True), *felt):
        members = (weight for weight in paths.shares if weight in chain.weights)
        weights = [weight for weight in members if weight.requires_grad and weight not in heads]
        if not weights:
            continue
        sizes = torch.stack([weight.double().square().mean().sqrt() for weight in weights])
        common = sizes.log().mean().exp()
        if not chain.is_normalized:
            # Gain sqrt(2) makes good what an activation takes; here and there none follows a layer.
            common *= 2 ** (min(chain.activations / len(weights) - 1, 0) / 2)
        for weight, size in zip(weights, sizes, strict=True):
            weight.mul_(common / size)


def _orthogonal_(weight: Tensor, gain: float) -> None:
    # On the CPU and in single precision: the same draws on every device, and QR needs the precision.
    weight.copy_(nn.init.orthogonal_(torch.empty(weight.shape), gain))
