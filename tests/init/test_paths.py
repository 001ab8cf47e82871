from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_gfs.errors import UserError
from lit_gfs.init import path_shares
from lit_gfs.init.paths import branch_scales, measure_paths
from lit_gfs.networks import DenseTrunk, MultiSkipTrunk, NatureCNN, PlainTrunk, ResidualTrunk


class Residual(nn.Module):
    """A stream to which each of some branches of linear layers adds; all layers are orthogonal."""

    def __init__(self, branches: int, layers: int, norm: bool = False, close: bool = False) -> None:
        super().__init__()
        self.input = nn.Linear(8, 8)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(8) if norm else nn.Identity(),
                *(nn.Linear(8, 8, bias=False) for _ in range(layers)),
            )
            for _ in range(branches)
        )
        self.close = nn.LayerNorm(8) if close else nn.Identity()
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.input(x)
        for branch in self.branches:
            stream = stream + branch(stream)
        return self.close(stream)


def only_scale(module: nn.Module, example: Tensor, growth: float = 2.0) -> float:
    (scale,) = set(branch_scales(module, example, measure_paths(module, example), growth).values())
    return scale


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "elu", "gelu", "silu"])
def test_every_path_crosses_every_layer_of_a_chain(norm: str, activation: str) -> None:
    shares = path_shares(PlainTrunk(5, depth=6, width=8, norm=norm, activation=activation), torch.zeros(1, 5))

    assert len(shares) == 6
    assert set(shares.values()) == {1.0}


def test_the_share_of_a_layer_is_that_of_squared_weights() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4), nn.Linear(4, 4)

    class Skipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor) -> Tensor:
            hidden = functional.relu(self.first(x))
            return (0.5 * hidden + self.second(hidden) + 3.0) / 7

    hidden = first.weight.square().sum(1) / 2
    crossing = (second.weight.square() @ hidden).sum()
    expected = float((crossing / (crossing + 0.25 * hidden.sum())).detach())

    shares = path_shares(Skipped(), torch.zeros(1, 3))

    assert shares == {"first": 1.0, "second": pytest.approx(expected)}


@pytest.mark.parametrize(("branches", "layers"), [(1, 1), (3, 2), (31, 2), (10, 5), (200, 3)])
def test_shares_and_factor_of_residual_branches_have_closed_forms(branches: int, layers: int) -> None:
    module = Residual(branches, layers)

    shares = path_shares(module, torch.zeros(1, 8))
    scale = only_scale(module, torch.zeros(1, 8))

    assert shares.pop("input") == 1.0
    assert list(shares.values()) == pytest.approx([0.5] * (branches * layers))
    assert scale == pytest.approx((2 ** (1 / branches) - 1) ** (1 / (2 * layers)), rel=1e-5)


def test_branches_that_normalize_what_they_read_add_and_do_not_multiply() -> None:
    # The closing normalization hides the output's size: what counts is the stream that it reads.
    for close in (False, True):
        scale = only_scale(Residual(10, 2, norm=True, close=close), torch.zeros(1, 8), growth=3.0)

        assert scale == pytest.approx((2 / 10) ** (1 / 4), rel=1e-5)


def test_layers_whose_scale_a_normalization_hides_are_optional_but_left_alone() -> None:
    paths = measure_paths(MultiSkipTrunk(8, depth=12, width=8, norm="layer"), torch.zeros(1, 8))

    assert sum(0 < share < 1 for share in paths.shares.values()) == 10
    assert paths.branches == []


def test_a_trunk_s_branches_are_one_group() -> None:
    for trunk in (
        ResidualTrunk(8, 12, 8),
        ResidualTrunk(8, 12, 8, "layer"),
        MultiSkipTrunk(8, 12, 8, "none"),
    ):
        paths = measure_paths(trunk, torch.zeros(1, 8))

        assert [len(branch.weights) for branch in paths.branches] == [10]


def test_what_is_concatenated_is_needed() -> None:
    for norm in ("none", "layer"):
        paths = measure_paths(DenseTrunk(5, depth=6, width=8, norm=norm), torch.zeros(1, 5))

        assert set(paths.shares.values()) == {1.0}
        assert paths.branches == []


def test_branches_before_a_concatenation_stay_optional() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.vector = Residual(4, 2), nn.Linear(8, 8)
            self.trunk = DenseTrunk(16, 3, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.trunk(torch.cat([self.image(x), self.vector(x)], dim=-1))

    paths = measure_paths(Towers(), torch.zeros(1, 8))

    assert list(paths.shares.values()) == pytest.approx([1.0] + [0.5] * 8 + [1.0] * 4)
    assert [len(branch.weights) for branch in paths.branches] == [8]


def test_outputs_do_not_make_each_other_s_layers_optional() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy, self.value = Residual(4, 2), PlainTrunk(8, 3, 8)
            self.unused = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"policy": self.policy(x), "value": self.value(x).sum(-1)}

    paths = measure_paths(Pair(), torch.zeros(1, 8))

    assert list(paths.shares.values()) == pytest.approx([1.0] + [0.5] * 8 + [1.0] * 3 + [0.0])
    assert [len(branch.weights) for branch in paths.branches] == [8]


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_convolutions_of_a_chain_are_needed(norm: str) -> None:
    module = nn.Sequential(NatureCNN((4, 36, 36), norm=norm), PlainTrunk(64, 1, 8))

    assert list(path_shares(module, torch.zeros(1, 4, 36, 36, dtype=torch.uint8)).values()) == [1.0] * 4


def test_each_normalized_convolution_is_a_chain_of_its_own() -> None:
    encoder = NatureCNN((4, 36, 36), norm="layer")

    chains = measure_paths(encoder, torch.zeros(1, 4, 36, 36)).chains

    assert all(chain.is_normalized for chain in chains)
    assert {chain.weights for chain in chains} == {
        frozenset([layer.weight]) for layer in encoder.modules() if isinstance(layer, nn.Conv2d)
    }


def test_a_shared_layer_counts_each_time_and_frozen_ones_carry_paths() -> None:
    shared, frozen = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)
    module = nn.Sequential(shared, nn.ReLU(), frozen, shared)

    assert path_shares(module, torch.zeros(1, 8)) == {"0": 2.0, "2": 1.0}


def test_a_module_is_left_as_it_was() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
            self.layers[1].eval()
            self.anchor = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) * self.anchor.exp()

    module = Noisy()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    modes = [child.training for child in module.modules()]

    with torch.no_grad():
        measure_paths(module, torch.zeros(2, 8))

    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert [child.training for child in module.modules()] == modes


def test_inputs_may_be_tuples_or_keywords() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(2, 4)
            for layer in (self.one, self.two):
                nn.init.ones_(layer.weight)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.one(a) + self.two(b)

    expected = {"one": pytest.approx(3 / 5), "two": pytest.approx(2 / 5)}
    assert path_shares(Sum(), (torch.zeros(1, 3), torch.zeros(1, 2))) == expected
    assert path_shares(Sum(), {"b": torch.zeros(1, 2), "a": torch.zeros(1, 3)}) == expected


def test_a_forward_that_does_not_run_is_the_user_s_error() -> None:
    with pytest.raises(UserError, match="Linear does not run on path energies"):
        path_shares(nn.Linear(3, 4), torch.zeros(1, 5))


def test_a_thousand_branches_do_not_overflow() -> None:
    module = Residual(900, 1)

    assert only_scale(module, torch.zeros(1, 8)) == pytest.approx(
        math.sqrt(math.expm1(math.log(2) / 900)), rel=1e-5
    )
