from __future__ import annotations

import math
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError
from lit_gfs.init import path_sensitive_
from lit_gfs.networks import (
    DenseTrunk,
    ImpalaCNN,
    LinearHead,
    MultiSkipTrunk,
    NatureCNN,
    PlainTrunk,
    ResidualTrunk,
)


def spread(module: nn.Module, inputs: Tensor, seed: int) -> tuple[float, float]:
    """Return largest by smallest layer gradient, over random output directions, and the output's std."""
    torch.manual_seed(seed + 100)
    output = module(inputs)
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    squares = torch.zeros(len(layers))
    for _ in range(16):
        module.zero_grad()
        output.backward(torch.randn_like(output), retain_graph=True)
        squares += torch.stack([sum(p.grad.square().sum() for p in layer.parameters()) for layer in layers])
    return float((squares.max() / squares.min()).sqrt()), float(output.detach().std())


BOUNDS = {PlainTrunk: 3.0, ResidualTrunk: 6.0, MultiSkipTrunk: 10.0, DenseTrunk: 6.0}


@pytest.mark.parametrize("depth", [4, 16, 64])
@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("trunk", BOUNDS, ids=lambda trunk: trunk.__name__)
def test_gradients_and_signals_keep_their_size(trunk: type, norm: str, depth: int) -> None:
    ratios, sizes = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        module = trunk(64, depth, 64, norm)
        path_sensitive_(module, torch.zeros(1, 64))
        ratio, size = spread(module, torch.randn(128, 64), seed)
        ratios.append(ratio)
        sizes.append(size)

    assert median(ratios) <= BOUNDS[trunk]
    assert 0.1 <= median(sizes) <= 2


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize(("encoder", "bound"), [(NatureCNN, 3.0), (ImpalaCNN, 6.0)])
def test_gradients_and_signals_keep_their_size_in_convolutions(
    encoder: type, bound: float, norm: str
) -> None:
    torch.manual_seed(0)
    pixels = encoder((4, 64, 64), norm=norm)
    module = nn.Sequential(pixels, PlainTrunk(pixels.out_features, 2, 256, norm))

    path_sensitive_(module, torch.zeros(1, 4, 64, 64))
    ratio, size = spread(module, torch.rand(8, 4, 64, 64), 0)

    assert ratio <= bound
    assert 0.1 <= size <= 2


def test_layers_whose_scale_normalizations_hide_get_equal_weights_and_the_function_stays() -> None:
    pixels = NatureCNN((4, 36, 36), norm="layer")
    module = nn.Sequential(pixels, PlainTrunk(64, 2, 32, norm="layer"), LinearHead(32, 3, gain=0.5))
    images = torch.rand(5, 4, 36, 36)

    path_sensitive_(module, images[:1])
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    sizes = [float(layer.weight.detach().square().mean().sqrt()) for layer in layers]
    output = module(images)
    for layer in layers[:-1]:
        singular = torch.linalg.svdvals(layer.weight.detach().flatten(1))
        torch.testing.assert_close(singular, singular.mean().expand_as(singular))
        with torch.no_grad():
            layer.weight.mul_(math.sqrt(2) / singular[0])

    assert sizes[:-1] == pytest.approx([sizes[0]] * 5, rel=1e-5)
    torch.testing.assert_close(module(images), output, rtol=1e-3, atol=1e-4)


def test_a_chain_of_equal_layers_is_orthogonal() -> None:
    module = PlainTrunk(8, 3, 8, norm="layer")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.3)

    path_sensitive_(module, torch.zeros(1, 8))

    for linear, norm in zip(module.layers[::3], module.layers[1::3], strict=True):
        torch.testing.assert_close(linear.weight @ linear.weight.T, 2 * torch.eye(8))
        assert not linear.bias.any()
        assert not norm.bias.any()
        assert (norm.weight == 1).all()


def test_layers_of_a_chain_get_equal_weights_and_the_product_of_gains_stays() -> None:
    module = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    path_sensitive_(module, torch.zeros(1, 64), head_gain=0.5)

    first, second, head = (layer.weight.detach() for layer in module[::2])
    assert float(first.square().mean()) == pytest.approx(float(second.square().mean()), rel=1e-5)
    gains = [float(torch.linalg.svdvals(weight)[0]) for weight in (first, second)]
    assert math.prod(gains) == pytest.approx(2.0, rel=1e-5)
    torch.testing.assert_close(torch.linalg.svdvals(head), torch.full((3,), 0.5))


def test_layers_without_an_activation_behind_them_have_gain_one() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU())

    path_sensitive_(module, torch.zeros(1, 8))

    product = module[2].weight @ module[1].weight @ module[0].weight
    torch.testing.assert_close(product @ product.T, 2 * torch.eye(8))


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["module", "trained"])
def test_layers_before_leaky_rectifiers_keep_the_scale(kind: str, slope: float) -> None:
    def activation() -> nn.Module:
        return nn.LeakyReLU(slope) if kind == "module" else nn.PReLU(init=slope)

    module = nn.Sequential(*(part for _ in range(20) for part in (nn.Linear(256, 256), activation())))
    inputs = torch.randn(64, 256)

    path_sensitive_(module, inputs[:1])

    weight = module[0].weight.detach()
    torch.testing.assert_close(weight @ weight.T, 2 / (1 + slope**2) * torch.eye(256), rtol=1e-4, atol=1e-4)
    assert 0.3 < float(module(inputs).detach().square().mean()) < 3


@pytest.mark.parametrize("slope", [0.1, 0.5])
@pytest.mark.parametrize("trunk", BOUNDS, ids=lambda trunk: trunk.__name__)
def test_gradients_and_signals_keep_their_size_with_leaky_slopes(trunk: type, slope: float) -> None:
    torch.manual_seed(0)
    module = trunk(64, 16, 64, "none", activation="leaky_relu", negative_slope=slope)
    path_sensitive_(module, torch.zeros(1, 64))

    ratio, size = spread(module, torch.randn(128, 64), 0)

    assert ratio <= BOUNDS[trunk]
    assert 0.1 <= size <= 2


def test_heads_keep_their_own_gain() -> None:
    module = nn.Sequential(PlainTrunk(4, 2, 8), LinearHead(8, 3, gain=0.01))

    path_sensitive_(module, torch.zeros(1, 4))

    torch.testing.assert_close(torch.linalg.svdvals(module[1].weight.detach()), torch.full((3,), 0.01))


def test_branches_share_one_factor_and_the_report_tells() -> None:
    trunk = ResidualTrunk(8, 12, 8)

    report = path_sensitive_(trunk, torch.zeros(1, 8))

    # Each branch multiplies the energy by 2 s^4: two gains sqrt(2), one activation.
    expected = ((2 ** (1 / 5) - 1) / 2) ** (1 / 4)
    assert report.branch_scales == {
        f"branches.{index}.{name}": pytest.approx(expected, rel=1e-5)
        for index in range(5)
        for name in ("first", "second")
    }
    weight = trunk.branches[3].first.weight.detach()
    torch.testing.assert_close(weight @ weight.T, 2 * expected**2 * torch.eye(8), rtol=1e-4, atol=1e-5)
    assert report.shares["input"] == report.shares["output.2"] == 1.0
    assert report.shares["branches.0.first"] == pytest.approx(2 / 3)


def test_repeated_inputs_enter_with_a_part_of_their_energy() -> None:
    skipping = MultiSkipTrunk(8, 12, 8)
    dense = DenseTrunk(8, depth=5, width=8)
    for module in (skipping, dense):
        path_sensitive_(module, torch.zeros(1, 8))

    assert (1 + 5 * float(skipping.skip_scale)) ** 2 == pytest.approx(2.0)
    for layer in dense.layers[1:]:
        hidden, features = layer[0].weight.detach().split(8, dim=1)
        torch.testing.assert_close(hidden @ hidden.T, 2 * torch.eye(8))
        torch.testing.assert_close(features @ features.T, 2 / 4 * torch.eye(8))


def test_frozen_layers_stay_and_shared_ones_are_scaled_once() -> None:
    shared, frozen = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)
    before = frozen.weight.clone()

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.input = frozen, nn.Linear(8, 8)
            self.branches = nn.ModuleList(nn.Sequential(nn.ReLU(), shared) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.input(self.frozen(x))
            for branch in self.branches:
                x = x + branch(x)
            return x

    report = path_sensitive_(Shared(), torch.zeros(1, 8))

    assert torch.equal(frozen.weight, before)
    assert list(report.branch_scales) == ["branches.0.1"]
    scale = report.branch_scales["branches.0.1"]
    assert (1 + scale**2) ** 4 == pytest.approx(2.0, rel=1e-5)
    torch.testing.assert_close(
        shared.weight @ shared.weight.T, 2 * scale**2 * torch.eye(8), rtol=1e-4, atol=1e-5
    )


def test_the_seed_decides() -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        module = ResidualTrunk(8, 4, 8)
        path_sensitive_(module, torch.zeros(1, 8))
        weights.append(module.branches[0].first.weight)

    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_half_precision() -> None:
    module = PlainTrunk(8, 2, 8).to(torch.bfloat16)

    path_sensitive_(module, torch.zeros(1, 8))

    weight = module.layers[0].weight.float()
    assert module.layers[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(8), rtol=0, atol=0.05)


def test_growth_is_of_branches_and_leaves_skips_alone() -> None:
    example = torch.zeros(1, 8)
    skipping = MultiSkipTrunk(8, 12, 16, norm="layer")

    small, large = (
        min(path_sensitive_(ResidualTrunk(8, 12, 16), example, growth=growth).branch_scales.values())
        for growth in (2.0, 16.0)
    )
    path_sensitive_(skipping, example, growth=16.0)

    assert large > 1.2 * small
    assert (1 + len(skipping.branches) * float(skipping.skip_scale)) ** 2 == pytest.approx(2.0)


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="ReLU has no layer to initialize"):
        path_sensitive_(nn.ReLU(), torch.zeros(1, 8))
    with pytest.raises(UserError, match="growth is 1"):
        path_sensitive_(nn.Linear(8, 8), torch.zeros(1, 8), growth=1.0)
    with pytest.raises(UserError, match="head_gain is -1"):
        path_sensitive_(nn.Linear(8, 8), torch.zeros(1, 8), head_gain=-1.0)


@pytest.mark.parametrize("activation", ["crelu", "fourier"])
def test_two_features_of_each_unit(activation: Any) -> None:
    module = nn.Sequential(PlainTrunk(16, depth=12, width=64, activation=activation), LinearHead(64, 4))
    report = path_sensitive_(module, torch.zeros(1, 16))
    assert len(report.shares) == 13
    ratio, std = spread(module, torch.randn(64, 16), 0)
    assert 0.1 < std < 3
    assert ratio < 10
