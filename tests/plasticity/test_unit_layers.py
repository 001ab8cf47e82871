"""Which weights lead into a unit and which lead out of it, in networks whose wiring is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lit_gfs.networks import (
    DenseTrunk,
    ImpalaCNN,
    LinearHead,
    MinAtarCNN,
    MultiSkipTrunk,
    NatureCNN,
    Network,
    PlainTrunk,
    ResidualTrunk,
    named_layers,
    numbered_layers,
)
from lit_gfs.plasticity.unit_layers import UnitMap, map_units


class ActorCritic(nn.Module):
    """Two heads on one network, whose outputs are changed on the way out."""

    def __init__(self, shape: tuple[int, ...], encoder: Any, trunk: Any) -> None:
        super().__init__()
        self.network = Network(shape, encoder, trunk, "orthogonal")
        self.policy = LinearHead(self.network.out_features, 3)
        self.value = LinearHead(self.network.out_features, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network(x)
        return self.policy(features).float(), self.value(features).squeeze(-1)


def mapped(module: nn.Module, *shape: int) -> UnitMap:
    return map_units(module, torch.zeros(1, *shape), numbered_layers(module))


def readers(found: UnitMap, module: nn.Module) -> dict[str, list[str]]:
    """Name the layers that read each layer's units."""
    names = {
        layer.weight: name for name, layer in numbered_layers(module).items() if hasattr(layer, "weight")
    }
    return {name: [names[each.parameter] for each in layer.outgoing] for name, layer in found.layers.items()}


@torch.no_grad()
def assert_shut_units_are_unread(module: nn.Module, inputs: Tensor, found: UnitMap) -> None:
    """Compare with the definition: with no outgoing weights, a unit's incoming weights change nothing."""
    for layer in found.layers.values():
        kept = {parameter: parameter.clone() for parameter in layer.parameters()}
        before, reads = module(inputs), []
        for shut in range(min(len(layer.weight), 6)):
            for share in layer.outgoing:
                share.parameter[:, share.units == shut] = 0
            without = module(inputs)
            layer.weight[shut] += 0.3
            after = module(inputs)
            assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(without, after, strict=True))
            reads.append(not all(torch.equal(*pair) for pair in zip(before, without, strict=True)))
            for parameter, value in kept.items():
                parameter.copy_(value)
        assert any(reads)  # not all of these units are dead


def vectors(trunk: Any, **options: Any) -> ActorCritic:
    return ActorCritic((5,), None, partial(trunk, depth=6, width=8, **options))


TRUNKS = {
    "plain": (PlainTrunk, [f"network.trunk.layer_0{index}" for index in range(1, 7)]),
    "dense": (DenseTrunk, [f"network.trunk.layer_0{index}" for index in range(1, 7)]),
    "residual": (
        ResidualTrunk,
        ["network.trunk.branch_01.first", "network.trunk.branch_02.first", "network.trunk.output_01"],
    ),
    "multi-skip": (
        MultiSkipTrunk,
        ["network.trunk.branch_01.layer_01", "network.trunk.branch_02.layer_01", "network.trunk.output_01"],
    ),
}


@pytest.mark.parametrize(("trunk", "expected"), TRUNKS.values(), ids=TRUNKS)
@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_trunks(trunk: Any, expected: list[str], norm: Any) -> None:
    torch.manual_seed(0)
    module = vectors(trunk, norm=norm)

    found = mapped(module, 5)

    assert list(found.layers) == expected
    hidden = [name for name in numbered_layers(module) if "trunk" in name and "norm" not in name]
    assert sorted([*found.layers, *found.left_out]) == sorted(hidden)
    if norm == "none":  # the statistics of a normalization see a unit that nobody else reads
        assert_shut_units_are_unread(module, torch.randn(64, 5), found)


@pytest.mark.parametrize("factor", ["inverse_sqrt", "trained"])
def test_a_factor_behind_a_branch_changes_nothing(factor: Any) -> None:
    found = mapped(vectors(ResidualTrunk, branch_factor=factor), 5)
    assert list(found.layers) == TRUNKS["residual"][1]


def test_a_plain_trunk_is_read_by_the_next_layer_and_at_the_end_by_both_heads() -> None:
    module = vectors(PlainTrunk)
    read_by = readers(mapped(module, 5), module)
    assert read_by["network.trunk.layer_05"] == ["network.trunk.layer_06"]
    assert read_by["network.trunk.layer_06"] == ["policy", "value"]


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_linear_layer_reads_the_positions_of_each_channel(norm: Any) -> None:
    torch.manual_seed(0)
    module = ActorCritic(
        (2, 10, 10), partial(MinAtarCNN, channels=3, norm=norm), partial(PlainTrunk, width=8)
    )

    found = mapped(module, 2, 10, 10)

    layer = found.layers["network.encoder.convolution_01"]
    (share,) = layer.outgoing
    assert share.parameter is module.network.trunk.layers[0].weight
    assert share.units.tolist() == [0] * 64 + [1] * 64 + [2] * 64
    assert [len(each.units) for each in layer.norms] == ([] if norm == "none" else [3, 3])
    if norm == "none":
        assert_shut_units_are_unread(module, torch.rand(8, 2, 10, 10), found)


def test_every_layer_of_a_dense_trunk_reads_an_encoder() -> None:
    torch.manual_seed(0)
    module = ActorCritic((4, 36, 36), NatureCNN, partial(DenseTrunk, depth=3, width=8))
    found = mapped(module, 4, 36, 36)
    layer = found.layers["network.encoder.convolution_03"]
    features = 64
    columns = [(share.units < 64).nonzero().flatten() for share in layer.outgoing]
    assert [(int(each[0]), len(each)) for each in columns] == [(0, features), (8, features), (8, features)]
    assert_shut_units_are_unread(module, torch.rand(8, 4, 36, 36), found)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_the_inner_convolutions_of_residual_blocks_have_units(norm: Any) -> None:
    module = ActorCritic(
        (3, 16, 16), partial(ImpalaCNN, channels=(4, 6), norm=norm), partial(PlainTrunk, width=8)
    )
    found = mapped(module, 3, 16, 16)
    convolutions = [name for name in found.layers if "encoder" in name]
    assert len(convolutions) == 4
    assert all(name.endswith("branch_01") for name in convolutions)
    assert len([name for name in found.left_out if "encoder" in name]) == 2 + 4
    if norm == "none":
        assert_shut_units_are_unread(module, torch.rand(8, 3, 16, 16), found)


class Wired(nn.Module):
    """Two layers and a function of how they are wired."""

    def __init__(self, wiring: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.wiring = wiring

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)


relu = torch.relu
OBSTACLES: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a sum": (lambda m, x: m.last(relu(m.first(x) + m.second(x))), "combined with those of another layer"),
    "a sum in place": (
        lambda m, x: m.last(relu(m.first(x)).add_(m.second(x))),
        "combined with those of another",
    ),
    "a product": (
        lambda m, x: m.last(relu(m.first(x)) * m.second(x).sigmoid()),
        "combined with those of another",
    ),
    "a sum with a mixture": (
        lambda m, x: m.last(relu(m.first(x) + torch.softmax(m.second(x), -1))),
        "combined with those of another",
    ),
    "no activation": (lambda m, x: m.last(relu(m.second(m.first(x)))), "before an activation"),
    "an output": (
        lambda m, x: (m.last(h := relu(m.first(x))), h),
        "forward returns its activated outputs",
    ),
    "one after the other": (lambda m, x: m.last(torch.tanh(relu(m.first(x)))), "two activations follow it"),
    "an unknown function": (
        lambda m, x: m.last(torch.softmax(relu(m.first(x)), -1)),
        "softmax reads its outputs",
    ),
    "two calls": (lambda m, x: m.last(relu(m.first(relu(m.first(x))))), "forward runs it more than once"),
    "a mean over units": (lambda m, x: relu(m.first(x)).mean(-1), "mean reads its outputs"),
}


@pytest.mark.parametrize(("wiring", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_a_unit_that_is_read_in_another_way_is_left_out_with_the_reason(wiring: Any, reason: str) -> None:
    module = Wired(wiring)
    found = map_units(module, torch.randn(1, 4), named_layers(module))
    assert "first" not in found.layers
    assert reason in found.left_out["first"]


HARMLESS: dict[str, Callable[[Any, Tensor], Any]] = {
    "scaled": lambda m, x: m.last(2 * relu(m.first(x) / 3 + 1)),
    "in place": lambda m, x: m.last(m.first(x).relu_().mul_(0.5)),
    "by keyword": lambda m, x: nn.functional.linear(
        input=relu(nn.functional.linear(input=x, weight=m.first.weight)), weight=m.last.weight
    ),
    "reordered": lambda m, x: m.last(relu(m.first(x))[:, [3, 1, 0, 2]]),
    "split": lambda m, x: m.last(torch.cat(relu(m.first(x)).chunk(2, dim=-1)[::-1], -1)),
    "dropped": lambda m, x: m.last(nn.functional.dropout(relu(m.first(x)), 0.5, training=m.training)),
    "normed behind": lambda m, x: m.last(nn.functional.layer_norm(relu(m.first(x)), (4,))),
}


@pytest.mark.parametrize("wiring", HARMLESS.values(), ids=HARMLESS)
def test_what_keeps_units_apart_is_followed(wiring: Any) -> None:
    module = Wired(wiring)
    found = map_units(module, torch.randn(1, 4), named_layers(module))
    (share,) = found.layers["first"].outgoing
    assert share.parameter is module.last.weight
    order = {"reordered": [3, 1, 0, 2], "split": [2, 3, 0, 1]}
    name = next(name for name, each in HARMLESS.items() if each is wiring)
    assert share.units.tolist() == order.get(name, [0, 1, 2, 3])


def test_frozen_and_computed_weights_are_left_alone() -> None:
    module = Wired(lambda m, x: m.last(relu(m.second(relu(m.first(x))))))
    module.second.requires_grad_(False)
    found = map_units(module, torch.zeros(1, 4), {"first": module.first, "second": module.second})
    assert found.left_out == {"first": "a reader is frozen", "second": "it is frozen"}

    module = Wired(lambda m, x: m.last(relu(m.second(relu(m.first(x))))))
    weight_norm(module.second)
    found = map_units(module, torch.zeros(1, 4), named_layers(module))
    assert found.layers == {}
    assert found.left_out == {"first": "the weight of a reader is computed of other parameters"}


def test_pooled_grouped_and_transposed_convolutions() -> None:
    convolutions = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Conv2d(6, 4, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)),
    )
    found = map_units(convolutions, torch.rand(1, 3, 16, 16), named_layers(convolutions))
    assert list(found.layers) == ["0", "7"]
    assert found.layers["7"].outgoing[0].units.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert found.left_out == {"3": "a grouped convolution reads its outputs"}


def test_a_trace_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    inputs, state = torch.randn(2, 3), torch.get_rng_state()
    found = map_units(module, inputs, named_layers(module))
    assert list(found.layers) == ["0"]
    assert [each.parameter.shape for each in found.layers["0"].norms] == [(4,), (4,)]
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("activation", ["crelu", "fourier"])
def test_both_features_of_a_unit_are_read(activation: Any) -> None:
    torch.manual_seed(0)
    module = vectors(PlainTrunk, activation=activation)
    found = mapped(module, 5)
    assert list(found.layers) == TRUNKS["plain"][1]
    layer = found.layers["network.trunk.layer_02"]
    assert layer.outgoing[0].units.tolist() == [0, 1, 2, 3] * 2
    assert layer.activations == (1 if activation == "crelu" else 2)
    assert_shut_units_are_unread(module, torch.randn(64, 5), found)
