from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer, RAdam
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from lit_gfs.errors import UserError
from lit_gfs.networks import LinearHead, MultiSkipTrunk, PlainTrunk, ResidualTrunk
from lit_gfs.optim import Kron, MuonWithAdam
from lit_gfs.optim.layer_positions import layer_positions
from lit_gfs.optim.layer_rates import base_rate, rate_factors, scale_rates_


def factors_of(network: nn.Module, rule: Any, **options: Any) -> dict[str, float]:
    """Return the factors that differ from 1, by name."""
    factors = rate_factors(network, layer_positions(network, torch.zeros(1, 8)), rule, **options)
    return {
        name: factors[parameter] for name, parameter in network.named_parameters() if parameter in factors
    }


def rates(optimizer: Optimizer, network: nn.Module) -> dict[str, float]:
    by_parameter = {p: float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: by_parameter[parameter] for name, parameter in network.named_parameters()}


def network_of(depth: int = 4, width: int = 16) -> nn.Sequential:
    return nn.Sequential(PlainTrunk(8, depth, width, "layer"), LinearHead(width, 3))


def test_the_rule_hidden_is_of_hidden_matrices_alone() -> None:
    found = factors_of(network_of(), "hidden", hidden_factor=0.125)

    assert found == {f"0.layers.{index}.weight": 0.125 for index in (3, 6, 9)}


def test_the_rule_mup_divides_by_the_width_of_the_input() -> None:
    found = factors_of(network_of(width=256), "mup", base_width=64)

    assert found == {f"0.layers.{index}.weight": 0.25 for index in (3, 6, 9)} | {"1.weight": 0.25}
    assert factors_of(network_of(width=64), "mup", base_width=64) == {}


@pytest.mark.parametrize("trunk", [ResidualTrunk, MultiSkipTrunk])
@pytest.mark.parametrize(("kind", "depth_factor"), [("inverse", 1.0), ("inverse_sqrt", 0.5)])
def test_the_rule_complete_p_follows_the_branch_factor(trunk: type, kind: str, depth_factor: float) -> None:
    network = nn.Sequential(trunk(8, 10, 128, "layer", branch_factor=kind), LinearHead(128, 3))

    found = factors_of(network, "complete_p", base_width=64, base_depth=4)

    # Four branches, and one at the base depth.
    for name, parameter in network.named_parameters():
        width_factor = 0.5 if parameter.ndim == 2 and not name.startswith("0.input") else 1.0
        expected = width_factor * (depth_factor if "branches" in name else 1.0)
        assert found.get(name, 1.0) == pytest.approx(expected), name


@pytest.mark.parametrize("build", [Adam, SGD, RAdam, Kron, MuonWithAdam])
def test_groups_are_split_and_the_optimizer_steps_as_one_built_over_them(build: Any) -> None:
    torch.manual_seed(0)
    network = network_of()
    twin = copy.deepcopy(network)
    factors = rate_factors(network, layer_positions(network, torch.zeros(1, 8)), "hidden")
    optimizer = build(network.parameters(), lr=0.01)

    scale_rates_(optimizer, factors)

    names = [name for name, p in network.named_parameters() if p in factors]
    others = [p for name, p in twin.named_parameters() if name not in names]
    hidden = [p for name, p in twin.named_parameters() if name in names]
    whole = build([{"params": others}, {"params": hidden, "lr": 0.0025}], lr=0.01)
    inputs = torch.randn(16, 8)
    for _ in range(3):
        for module, each in ((network, optimizer), (twin, whole)):
            each.zero_grad()
            module(inputs).square().mean().backward()
            each.step()
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_group_is_split_in_place_and_keeps_its_options() -> None:
    network = network_of()
    optimizer = Adam(
        [
            {"params": list(network[0].parameters()), "betas": (0.5, 0.9)},
            {"params": list(network[1].parameters()), "lr": 0.1},
        ],
        lr=0.01,
    )
    groups, factors = optimizer.param_groups, factors_by_hand(network)

    scale_rates_(optimizer, factors)

    assert optimizer.param_groups is groups
    assert [group["betas"] for group in groups] == [(0.5, 0.9), (0.5, 0.9), (0.9, 0.999), (0.9, 0.999)]
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.0025, 0.05, 0.1])
    assert [base_rate(group) for group in groups] == pytest.approx([0.01, 0.01, 0.1, 0.1])
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    before = rates(optimizer, network)
    scale_rates_(optimizer, factors)
    assert rates(optimizer, network) == before


def factors_by_hand(network: nn.Sequential) -> dict[nn.Parameter, float]:
    return {network[0].layers[3].weight: 0.25, network[1].weight: 0.5}


SCHEDULERS = {
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "step": lambda optimizer: StepLR(optimizer, 2, 0.5),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 5),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=8, cycle_momentum=False),
    "sequential": lambda optimizer: SequentialLR(
        optimizer, [ConstantLR(optimizer, 0.1, 2), StepLR(optimizer, 1, 0.9)], milestones=[2]
    ),
    "chained": lambda optimizer: ChainedScheduler(
        [ConstantLR(optimizer, 0.1, 2), StepLR(optimizer, 1, 0.9)], optimizer
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_acts_on_all_groups(name: str) -> None:
    network = network_of()
    plain, scaled = SGD(network.parameters(), 0.1), SGD(network.parameters(), 0.1)
    schedules = [SCHEDULERS[name](optimizer) for optimizer in (plain, scaled)]

    scale_rates_(scaled, factors_by_hand(network), [schedules[1]])

    for _ in range(5):
        whole, found = rates(plain, network), rates(scaled, network)
        for key, parameter in network.named_parameters():
            expected = whole[key] * factors_by_hand(network).get(parameter, 1.0)
            assert found[key] == pytest.approx(expected, rel=1e-6), key
        assert schedules[1].get_last_lr() == [group["lr"] for group in scaled.param_groups]
        for optimizer, schedule in zip((plain, scaled), schedules, strict=True):
            optimizer.step()
            schedule.step()


def test_mistakes_are_told() -> None:
    network = network_of()
    for options, message in (
        ({"rule": "hiden"}, r"rule is 'hiden'; expected one of .*hidden"),
        ({"rule": "hidden", "hidden_factor": 0.0}, r"hidden_factor is 0\.0; expected a number above 0"),
        ({"rule": "mup", "base_width": 0}, r"base_width is 0; expected a whole number of at least 1"),
        ({"rule": "complete_p", "base_depth": 2}, r"base_depth is 2; expected at least 3"),
        ({"rule": "complete_p"}, r"complete_p needs a residual trunk .* or the rule mup"),
    ):
        with pytest.raises(UserError, match=message):
            factors_of(network, **options)
