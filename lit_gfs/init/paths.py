"""Shares of path energy that cross each layer of a network, and the branch scales that follow from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_gfs.init.path_network import BranchEnd, End, Origin, PathNetwork, Reading
from lit_gfs.init.plain_weights import plain_weights

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers whose paths are measured."""

_TOLERANCE = 1e-6
"""Shares this close to 0 or 1 count as exactly 0 or 1."""

Weights = frozenset[nn.Parameter]


class Chain(NamedTuple):
    """Layers that all paths to the same ends cross."""

    weights: Weights
    activations: float
    """Number of activations on a path of the chain that crosses no branch. A leaky ReLU counts as the part of
    an activation by which it reduces the energy, in powers of 1/2."""
    is_normalized: bool
    """Whether a normalization hides the scale of the chain's output."""


class Branches(NamedTuple):
    """Trainable layers that only some of the paths to the same ends cross."""

    weights: Weights
    ends: list[int]
    """Indices of the ends whose energy depends on the scale of these layers."""


class Paths(NamedTuple):
    """The measured paths of a module. Layers are identified by their weights."""

    shares: dict[nn.Parameter, float]
    """The share of path energy that crosses each layer, the smallest over the outputs that it reaches: 1 if
    every path crosses the layer once, less if the layer is optional, 0 if it reaches no output."""
    branches: list[Branches]
    """Groups of optional layers; each group gets one factor."""
    branch_ends: list[BranchEnd]
    """The ends of branches that add the output of an optional layer to a stream. A layer that is also called
    elsewhere is no end."""
    chains: list[Chain]
    """Groups of layers that all paths cross. Factors with a product of 1 do not change the outputs."""
    cuts: frozenset[int]
    """The normalizations and concatenations that all paths cross, as indices in the order of their calls."""
    direct: Tensor
    """The total energy at each end, without the paths through optional layers."""
    readings: list[Reading]
    """The inputs of the layers, in the order of their calls."""
    outputs: list[Origin | None]
    """For each returned tensor, the layer that computed it."""


def layer_weights(module: nn.Module) -> dict[nn.Parameter, str]:
    """Return the weights of all linear and convolutional layers; a shared weight has its first name."""
    names: dict[nn.Parameter, str] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, LAYERS) and isinstance(layer.weight, nn.Parameter):
            names.setdefault(layer.weight, name or type(layer).__name__)
    return names


def path_shares(module: nn.Module, example_input: Any) -> dict[str, float]:
    """Measure the share of path energy that crosses each linear or convolutional layer.

    Let R be the sum of an output's path energies and w a layer's weight. The share is ``sum(w dR/dw) / (2
    R)``, the saliency of Tanaka et al. (2020, arXiv 2006.05467), on energies and summed over the layer.

    Args:
        module: Any module; it does not change.
        example_input: Input of its forward: a tensor, a tuple of arguments or a dict of keywords. Only the
            shapes matter.

    Returns:
        Shares by the layers' names, the smallest over the outputs that a layer reaches: 1 if every path
        crosses the layer once, less if it is on a branch, 0 if it reaches no output.

    Raises:
        UserError: If the forward does not run on path energies.
    """
    with plain_weights(module, LAYERS):
        names = layer_weights(module)
        shares = measure_paths(module, example_input).shares
        return {name: shares[weight] for weight, name in names.items()}


@torch.enable_grad()
def measure_paths(module: nn.Module, example_input: Any) -> Paths:
    """Measure the paths through a module; see `Paths`.

    Args:
        module: Any module; it does not change.
        example_input: Input of its forward, as in `path_shares`.

    Raises:
        UserError: If the forward does not run on path energies.
    """
    weights = list(layer_weights(module))
    ones = {weight: _one(weight) for weight in weights}
    # 1. Measure the shares of all calls of layers (rows of `is_call_of`), and of all joints, at each end.
    # A joint is a cut if all paths cross it.
    uncut = PathNetwork(ones).run(module, example_input)
    calls = [reading.factor for reading in uncut.readings]
    shares = _energy_shares(uncut.ends, [*calls, *uncut.joints])
    call_shares, joint_shares = shares[:, : len(calls)], shares[:, len(calls) :]
    is_call_of = torch.tensor([[r.weight is weight for weight in weights] for r in uncut.readings]).view(
        -1, len(weights)
    )
    layer_shares = call_shares @ is_call_of.double()
    is_cut = _all_or_nothing(joint_shares) & (joint_shares > 0).any(0)
    cuts = frozenset(torch.nonzero(is_cut).flatten().tolist())

    # 2. Measure again with paths that end at cuts: the scale of a layer matters only up to the next cut.
    cut = PathNetwork(ones, cuts, bend=True).run(module, example_input)
    cut_shares = _energy_shares(cut.ends, [reading.factor for reading in cut.readings]) @ is_call_of.double()
    # A layer is optional if paths bypass one of its calls, and no call is on all paths to an end.
    is_bypassed = ((call_shares > 0) & (call_shares < 1)).any(0)
    is_needed = (call_shares >= 1).any(0)
    is_optional = is_call_of[is_bypassed].any(0) & ~is_call_of[is_needed].any(0)
    # A layer is a member of a chain if, at each end, either all paths cross it once or none does.
    is_in_chain = (
        ((layer_shares == 0) | (layer_shares == 1)).all(0)
        & ((cut_shares == 0) | (cut_shares == 1)).all(0)
        & (cut_shares > 0).any(0)
    )

    # 3. Measure the energies without optional layers, and count the activations on these paths.
    optional = {weight for weight, is_member in zip(weights, is_optional.tolist(), strict=True) if is_member}
    shut = {weight: factor * (weight not in optional) for weight, factor in ones.items()}
    direct = PathNetwork(shut, cuts).run(module, example_input)
    activations = _energy_shares(direct.ends, [direct.half]).flatten()

    # 4. Group optional layers, and layers of chains, by the ends that they reach.
    trainable = torch.tensor([weight.requires_grad for weight in weights], dtype=torch.bool)
    branches: dict[Weights, list[int]] = {}
    for index, is_member in enumerate(is_optional & trainable & (cut_shares > 0)):
        if is_member.any():
            branches.setdefault(_members(weights, is_member), []).append(index)
    chains = [
        Chain(
            _members(weights, is_in_chain & (reached == (cut_shares > 0).T).all(1)),
            float(activations[reached].min()),
            all(
                end.kind == "norm"
                for end, is_reached in zip(cut.ends, reached.tolist(), strict=True)
                if is_reached
            ),
        )
        for reached in torch.unique((cut_shares > 0).T[is_in_chain], dim=0)
    ]
    least = torch.where(layer_shares > 0, layer_shares, torch.inf).amin(0)
    return Paths(
        shares=dict(zip(weights, torch.where(least.isinf(), 0, least).tolist(), strict=True)),
        branches=[Branches(*branch) for branch in branches.items()],
        branch_ends=_branch_ends(uncut, optional),
        chains=chains,
        cuts=cuts,
        direct=torch.stack([end.total.detach() for end in direct.ends]),
        readings=uncut.readings,
        outputs=[output.origin for output in uncut.outputs],
    )


@torch.enable_grad()
def branch_scales(
    module: nn.Module,
    example_input: Any,
    paths: Paths,
    growth: float,
    unscaled: Collection[nn.Parameter] = (),
) -> dict[nn.Parameter, float]:
    """Find the factors on optional layers for which branches multiply the path energy by ``growth``.

    All layers of a branch group share one factor s. With it, the path energy at the group's ends is
    ``growth`` times the energy without the group. For L residual branches of m layers that keep the energy, s
    solves ``(1 + s^(2m))^L = growth``.

    Args:
        module: The measured module; it does not change.
        example_input: Input of its forward, as in `path_shares`.
        paths: The result of `measure_paths`.
        growth: The ratio of energies with and without branches, more than 1.
        unscaled: The optional layers without a factor, such as the last layers of branches.

    Returns:
        The factors on the weights, at most 1. A layer of several groups gets their smallest factor.
    """
    device = paths.direct.device
    chosen = [(branch.weights.difference(unscaled), branch.ends) for branch in paths.branches]
    branches = [Branches(weights, ends) for weights, ends in chosen if weights]
    logs = torch.zeros(len(branches), dtype=torch.float64, device=device, requires_grad=True)
    # Newton's method for log((ratio - 1) / (growth - 1)) = 0 as a function of log s. The function is convex
    # and almost linear, so the iteration decreases from s = 1 without overshooting.
    for _ in range(100 if branches else 0):
        factors = {weight: _one(weight) for weight in paths.shares}
        # Energies have the factor s^2.
        for branch, factor in zip(branches, (2 * logs).exp(), strict=True):
            factors |= {weight: torch.minimum(factors[weight], factor) for weight in branch.weights}
        ends = PathNetwork(factors, paths.cuts).run(module, example_input).ends
        ratios = torch.stack([end.total for end in ends]) / paths.direct
        excess = torch.stack([((ratios[branch.ends].max() - 1) / (growth - 1)).log() for branch in branches])
        # A group that adds too little energy at s = 1 keeps s = 1.
        is_done = ((excess <= 0) & (logs == 0)) | (excess.abs() < 1e-5)
        if is_done.all():
            break
        (slopes,) = torch.autograd.grad(excess.sum(), logs)
        logs = torch.where(is_done, logs, (logs - excess / slopes).clamp(max=0)).detach().requires_grad_()
    scales: dict[nn.Parameter, float] = {}
    for branch, scale in zip(branches, logs.exp().tolist(), strict=True):
        scales |= {weight: min(scale, scales.get(weight, 1.0)) for weight in branch.weights}
    return scales


def _one(weight: nn.Parameter) -> Tensor:
    return torch.ones((), dtype=torch.float64, device=weight.device)


def _energy_shares(ends: list[End], factors: list[Tensor]) -> Tensor:
    """Return ``d log(energy) / d log(factor)``, ``(ends, factors)``, rounded to exactly 0 or 1 where close.

    For a factor on a layer, this is the share of the end's energy that crosses the layer.
    """
    rows = [torch.zeros(0, len(factors), dtype=torch.float64)]
    for end in ends:
        total = end.total
        if not total.requires_grad:
            rows.append(torch.zeros(1, len(factors), dtype=torch.float64))
            continue
        gradients = torch.autograd.grad(total, factors, retain_graph=True, allow_unused=True)
        row = [
            total.detach() * 0 if gradient is None else gradient * factor.detach() / total.detach()
            for gradient, factor in zip(gradients, factors, strict=True)
        ]
        rows.append(torch.stack([share.cpu() for share in row])[None] if row else rows[0].new_zeros(1, 0))
    shares = torch.cat(rows)
    for exact in (0.0, 1.0):
        shares = torch.where((shares - exact).abs() < _TOLERANCE, exact, shares)
    return shares


def _branch_ends(network: PathNetwork, optional: Collection[nn.Parameter]) -> list[BranchEnd]:
    """Return the ends of branches whose last layer is optional, and is the last in each of its calls.

    A branch that a factor of 0 shuts has no energy, so its layers are not optional.
    """
    calls = Counter(reading.weight for reading in network.readings)
    ends = Counter(end.layer for end in network.branch_ends)
    return [
        end
        for end in dict.fromkeys(network.branch_ends)
        if end.layer in optional and calls[end.layer] == ends[end.layer]
    ]


def _all_or_nothing(shares: Tensor) -> Tensor:
    """Return which columns contain no share between 0 and 1."""
    return ((shares == 0) | (shares >= 1)).all(0)


def _members(weights: list[nn.Parameter], is_member: Tensor) -> Weights:
    return frozenset(weight for weight, chosen in zip(weights, is_member.tolist(), strict=True) if chosen)
