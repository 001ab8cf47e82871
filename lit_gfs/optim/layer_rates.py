"""Learning rates of their own for layers: factors by depth and width, and parameter groups that have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from lit_gfs.errors import UserError, require_above, require_one_of, require_positive
from lit_gfs.networks import ConstantFactor
from lit_gfs.networks.layers import own_parameters
from lit_gfs.optim.layer_positions import Position, is_matrix

Rule = Literal["hidden", "mup", "complete_p"]

RATE_FACTOR = "rate_factor"
"""Key of a parameter group: the factor that its learning rate has got."""

_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
_SCHEDULER_RATES = ("base_lrs", "_last_lr", "max_lrs", "min_lrs")
_SCHEDULER_LISTS = (*_SCHEDULER_RATES, "lr_lambdas", "_base_momentums", "base_momentums", "max_momentums")


def rate_factors(
    module: nn.Module,
    positions: Mapping[nn.Module, Position],
    rule: Rule = "hidden",
    hidden_factor: float = 0.25,
    base_width: int = 64,
    base_depth: int = 4,
) -> dict[nn.Parameter, float]:
    """Compute the factors of the learning rates that differ from 1.

    A matrix is a parameter with at least two dimensions, such as the weight of a linear or convolutional
    layer. It is *hidden* if its layer reads another layer and is read by another; see
    `lit_gfs.optim.layer_positions`.

    - ``hidden``: ``hidden_factor`` for hidden matrices.
    - ``mup``: ``base_width / fan_in`` for hidden and last matrices (muP for Adam, Yang et al. 2022, arXiv
      2203.03466, table 3). First matrices, biases and normalizations keep the rate. The table also starts the
      last matrix smaller, by the factor ``1 / fan_in`` on its standard deviation; this is not a matter of
      rates and not done here.
    - ``complete_p``: as ``mup``, and all parameters of residual branches with the factor L^-a on their output
      get ``(L / L_base)^(a - 1)`` besides, where L is the number of branches (Dey et al. 2025, arXiv
      2505.01618, table 1, for Adam). That is 1 for ``branch_factor="inverse"``, CompleteP itself, and
      ``(L / L_base)^-1/2`` for ``"inverse_sqrt"``. The table's rules for Adam's epsilon and for weight decay
      are not covered.

    Args:
        module: Any module.
        positions: The positions of its layers, from `layer_positions`.
        rule: The rule.
        hidden_factor: The factor of ``hidden``.
        base_width: The width at which hidden matrices keep the rate.
        base_depth: The depth of the residual trunk whose branches keep the rate, in linear layers.

    Returns:
        Factors by parameter. A matrix of a layer without a position has none, so it keeps its rate.

    Raises:
        UserError: If an option is out of range, or ``complete_p`` finds no branch with a constant factor.
    """
    check_rule(rule, hidden_factor, base_width, base_depth)
    factors: dict[nn.Parameter, float] = {}
    for layer, position in positions.items():
        factor = _matrix_factor(rule, position, hidden_factor, base_width)
        for parameter in filter(is_matrix, own_parameters(layer)):
            factors.setdefault(parameter, factor)  # a shared matrix is where it is read first
    if rule == "complete_p":
        for parameter, factor in _branch_factors(module, (base_depth - 1) // 2).items():
            factors[parameter] = factors.get(parameter, 1.0) * factor
    return {parameter: factor for parameter, factor in factors.items() if factor != 1}


def check_rule(rule: str, hidden_factor: float, base_width: int, base_depth: int) -> None:
    """Check the options of `rate_factors`.

    Raises:
        UserError: If an option is out of range.
    """
    require_one_of(get_args(Rule), rule=rule)
    require_above(0, hidden_factor=hidden_factor)
    require_positive(base_width=base_width)
    if base_depth < 3:
        raise UserError(f"base_depth is {base_depth}; expected at least 3, the depth with one branch")


def _matrix_factor(rule: Rule, position: Position, hidden_factor: float, base_width: int) -> float:
    if rule == "hidden":
        return hidden_factor if position.kind == "hidden" else 1.0
    return 1.0 if position.kind == "first" else base_width / position.fan_in


def _branch_factors(module: nn.Module, base_branches: int) -> dict[nn.Parameter, float]:
    """Return ``(L / L_base)^(a - 1)`` for all parameters beside a constant factor L^-a."""
    factors: dict[nn.Parameter, float] = {}
    found = False
    for branch in module.modules():
        for child in branch.children():
            if isinstance(child, ConstantFactor):
                found = True
                factor = (child.branches / base_branches) ** (child.exponent - 1)
                factors |= dict.fromkeys(branch.parameters(), factor)
    if not found:
        raise UserError(
            "complete_p needs a residual trunk whose branches have a constant factor; expected "
            "branch_factor inverse (CompleteP) or inverse_sqrt, or the rule mup"
        )
    return factors


def scale_rates_(
    optimizer: Optimizer, factors: Mapping[nn.Parameter, float], schedulers: Iterable[Any] = ()
) -> None:
    """Split an optimizer's parameter groups in place, so that parameters get factors on their learning rates.

    The parameters of a group that share a factor stay together. The first of them stay in the group; others
    get copies of it. The rates of a group, the initial one and the bounds of some schedules included, are
    multiplied by its factor, which the group keeps under `RATE_FACTOR`. A second call with the same factors
    changes nothing. Schedulers are adapted to the new groups, as if they had been built over them.

    Args:
        optimizer: Any optimizer of PyTorch's interface, before its first step.
        factors: Factors by parameter; all others have the factor 1.
        schedulers: Schedulers of the optimizer.
    """
    groups: list[dict[str, Any]] = []
    origins: list[tuple[int, float]] = []
    for index, group in enumerate(optimizer.param_groups):
        members: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            members.setdefault(factors.get(parameter, 1.0), []).append(parameter)
        done = group.get(RATE_FACTOR, 1.0)
        copies = [group, *({**group} for _ in range(len(members) - 1))]
        for copy, (factor, parameters) in zip(copies, members.items(), strict=False):
            rates = {key: copy[key] * (factor / done) for key in _GROUP_RATES if key in copy}
            copy.update(rates, params=parameters)
            copy[RATE_FACTOR] = factor
            groups.append(copy)
            origins.append((index, factor / done))
    # The list stays the same object, as others may hold it.
    optimizer.param_groups[:] = groups
    for scheduler in schedulers:
        _adapt(scheduler, origins)


def base_rate(group: Mapping[str, Any]) -> Any:
    """Return the learning rate of a parameter group without the factor of its layers."""
    return group["lr"] / group.get(RATE_FACTOR, 1.0)


def _adapt(scheduler: Any, origins: list[tuple[int, float]]) -> None:
    """Give a scheduler's lists one entry for each new group: the former group's, with rates scaled."""
    for inner in getattr(scheduler, "_schedulers", ()):  # of SequentialLR and ChainedScheduler
        _adapt(inner, origins)
    for name in _SCHEDULER_LISTS:
        values = getattr(scheduler, name, None)
        if isinstance(values, list):
            scales = [factor if name in _SCHEDULER_RATES else None for _, factor in origins]
            setattr(
                scheduler,
                name,
                [
                    values[index] if scale is None else values[index] * scale
                    for (index, _), scale in zip(origins, scales, strict=True)
                ],
            )
