"""Which share of the paths through a network crosses each of its layers, and what follows for its scale."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_gfs.init.path_network import End, Origin, PathNetwork, Reading
from lit_gfs.init.plain_weights import plain_weights

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers whose paths are measured."""

_ROUNDING = 1e-6
"""Shares this close to 0 or 1 are 0 or 1."""

Weights = frozenset[nn.Parameter]


class Chain(NamedTuple):
    """Layers that every path to the same ends crosses."""

    weights: Weights
    activations: float
    """How many activations a path crosses there that crosses no branch."""
    is_normalized: bool
    """Whether a normalization hides the scale of what the layers put out together."""


class Branches(NamedTuple):
    """Trainable layers that only some paths cross, and whose scale is felt where these end."""

    weights: Weights
    ends: list[int]


class Paths(NamedTuple):
    """What the paths through a module's layers carry. Layers are known by their weights."""

    shares: dict[nn.Parameter, float]
    """The share of path energy that crosses each layer, the least over the outputs that it reaches: 1 for a
    layer that every path crosses once, less for an optional one, 0 for one that reaches no output."""
    branches: list[Branches]
    """Groups of optional layers that get one factor each."""
    chains: list[Chain]
    """Groups of needed layers such that factors on them whose product is 1 leave the outputs as they are."""
    cuts: frozenset[int]
    """The normalizations and concatenations that all paths cross, in the order of their calls."""
    direct: Tensor
    """The total energies where paths end, without those that cross optional layers."""
    readings: list[Reading]
    """What the layers read, call by call."""
    outputs: list[Origin | None]
    """For each returned tensor, the layer whose output it is."""


def layer_weights(module: nn.Module) -> dict[nn.Parameter, str]:
    """Name the weights of all linear and convolutional layers; a shared one goes by its first name."""
    names: dict[nn.Parameter, str] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, LAYERS) and isinstance(layer.weight, nn.Parameter):
            names.setdefault(layer.weight, name or type(layer).__name__)
    return names


def path_shares(module: nn.Module, example_input: Any) -> dict[str, float]:
    """Measure the share of path energy that crosses each linear or convolutional layer.

    With R the sum of an output's path energies and w a layer's weight, it is ``sum(w dR/dw) / (2 R)``, the
    saliency of Tanaka et al. (2020, arXiv 2006.05467) summed over a layer, on energies.

    Args:
        module: Any module; nothing of it changes.
        example_input: What its forward takes: a tensor, a tuple of arguments or a dict of keywords, of which
            only the shapes matter.

    Returns:
        Shares by the layers' names, the least over the outputs that a layer reaches: 1 for a layer that every
        path crosses once, less for one on a branch, 0 for one that reaches no output.

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
        module: Any module; nothing of it changes.
        example_input: What its forward takes, as in `path_shares`.

    Raises:
        UserError: If the forward does not run on path energies.
    """
    weights = list(layer_weights(module))
    ones = {weight: _one(weight) for weight in weights}
    uncut = PathNetwork(ones).run(module, example_input)
    calls = [reading.factor for reading in uncut.readings]
    table = _table(uncut.ends, [*calls, *uncut.joints])
    of_calls, of_joints = table[:, : len(calls)], table[:, len(calls) :]
    is_call_of = torch.tensor([[r.weight is weight for weight in weights] for r in uncut.readings]).view(
        -1, len(weights)
    )
    crossed = of_calls @ is_call_of.double()
    is_cut = _all_or_nothing(of_joints) & (of_joints > 0).any(0)
    cuts = frozenset(torch.nonzero(is_cut).flatten().tolist())

    cut = PathNetwork(ones, cuts, bend=True).run(module, example_input)
    felt = _table(cut.ends, [reading.factor for reading in cut.readings]) @ is_call_of.double()
    is_bypassed = ((of_calls > 0) & (of_calls < 1)).any(0)
    is_needed = (of_calls >= 1).any(0)
    is_optional = is_call_of[is_bypassed].any(0) & ~is_call_of[is_needed].any(0)
    is_exact = (
        ((crossed == 0) | (crossed == 1)).all(0) & ((felt == 0) | (felt == 1)).all(0) & (felt > 0).any(0)
    )

    optional = {weight for weight, is_member in zip(weights, is_optional.tolist(), strict=True) if is_member}
    shut = {weight: factor * (weight not in optional) for weight, factor in ones.items()}
    direct = PathNetwork(shut, cuts).run(module, example_input)
    halvings = _table(direct.ends, [direct.half]).flatten()

    trainable = torch.tensor([weight.requires_grad for weight in weights], dtype=torch.bool)
    branches: dict[Weights, list[int]] = {}
    for index, is_member in enumerate(is_optional & trainable & (felt > 0)):
        if is_member.any():
            branches.setdefault(_members(weights, is_member), []).append(index)
    chains = [
        Chain(
            _members(weights, is_exact & (reached == (felt > 0).T).all(1)),
            float(halvings[reached].min()),
            all(
                end.kind == "norm" for end, ends_it in zip(cut.ends, reached.tolist(), strict=True) if ends_it
            ),
        )
        for reached in torch.unique((felt > 0).T[is_exact], dim=0)
    ]
    least = torch.where(crossed > 0, crossed, torch.inf).amin(0)
    return Paths(
        shares=dict(zip(weights, torch.where(least.isinf(), 0, least).tolist(), strict=True)),
        branches=[Branches(*branch) for branch in branches.items()],
        chains=chains,
        cuts=cuts,
        direct=torch.stack([end.total.detach() for end in direct.ends]),
        readings=uncut.readings,
        outputs=[output.origin for output in uncut.outputs],
    )


@torch.enable_grad()
def branch_scales(
    module: nn.Module, example_input: Any, paths: Paths, growth: float
) -> dict[nn.Parameter, float]:
    """Find the factors on optional layers with which branches carry what is asked of them.

    All layers of a branch group share one factor, with which the path energy where the group's paths end is
    ``growth`` times what it is without them. For L residual branches of m layers that each keep the energy,
    it solves ``(1 + s^(2m))^L = growth``.

    Args:
        module: The module that was measured; nothing of it changes.
        example_input: What its forward takes, as in `path_shares`.
        paths: What `measure_paths` returned.
        growth: The ratio asked for, more than 1.

    Returns:
        The factors on the weights, at most 1; the smallest for a layer of several groups.
    """
    device = paths.direct.device
    logs = torch.zeros(len(paths.branches), dtype=torch.float64, device=device, requires_grad=True)
    # Newton's method on the logarithm of what branches add, over that of the factor: close to a line, and
    # convex, so that it comes down from 1 without overshooting.
    for _ in range(100 if paths.branches else 0):
        factors = {weight: _one(weight) for weight in paths.shares}
        for branch, factor in zip(paths.branches, (2 * logs).exp(), strict=True):
            factors |= {weight: torch.minimum(factors[weight], factor) for weight in branch.weights}
        ends = PathNetwork(factors, paths.cuts).run(module, example_input).ends
        ratios = torch.stack([end.total for end in ends]) / paths.direct
        excess = torch.stack(
            [((ratios[branch.ends].max() - 1) / (growth - 1)).log() for branch in paths.branches]
        )
        is_done = ((excess <= 0) & (logs == 0)) | (excess.abs() < 1e-5)
        if is_done.all():
            break
        (slopes,) = torch.autograd.grad(excess.sum(), logs)
        logs = torch.where(is_done, logs, (logs - excess / slopes).clamp(max=0)).detach().requires_grad_()
    scales: dict[nn.Parameter, float] = {}
    for branch, scale in zip(paths.branches, logs.exp().tolist(), strict=True):
        scales |= {weight: min(scale, scales.get(weight, 1.0)) for weight in branch.weights}
    return scales


def _one(weight: nn.Parameter) -> Tensor:
    return torch.ones((), dtype=torch.float64, device=weight.device)


def _table(ends: list[End], factors: list[Tensor]) -> Tensor:
    """Return ``d log energy / d log factor``, ``(ends, factors)``, exact where it is 0 or 1."""
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
    table = torch.cat(rows)
    for exact in (0.0, 1.0):
        table = torch.where((table - exact).abs() < _ROUNDING, exact, table)
    return table


def _all_or_nothing(table: Tensor) -> Tensor:
    """Return in which columns no share lies between 0 and 1."""
    return ((table == 0) | (table >= 1)).all(0)


def _members(weights: list[nn.Parameter], is_member: Tensor) -> Weights:
    return frozenset(weight for weight, chosen in zip(weights, is_member.tolist(), strict=True) if chosen)
