from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError
from lit_gfs.init import path_sensitive_
from lit_gfs.networks import DenseTrunk, LinearHead, MultiSkipTrunk, NatureCNN, PlainTrunk, ResidualTrunk


def mean_cosine(features: Tensor) -> float:
    """Return the mean cosine between the features of different inputs."""
    directions = nn.functional.normalize(features, dim=-1)
    count = len(features)
    return float(((directions @ directions.T).sum() - count) / (count * (count - 1)))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("depth", [1, 2, 7])
def test_a_chain_computes_a_linear_isometry(depth: int, activation: str) -> None:
    module = nn.Sequential(PlainTrunk(8, depth, 16, activation=activation), LinearHead(16, 8, gain=1.0))

    report = path_sensitive_(module, torch.zeros(1, 8), mirrored=True)

    matrix = module(torch.eye(8)).T.detach()
    inputs = 3 * torch.randn(32, 8)
    torch.testing.assert_close(module(inputs), inputs @ matrix.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8), rtol=1e-4, atol=1e-4)
    assert len(report.mirrored) == depth


@pytest.mark.parametrize("slope", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("depth", [1, 2, 7])
def test_a_leaky_chain_computes_a_linear_isometry_too(depth: int, slope: float) -> None:
    trunk = PlainTrunk(8, depth, 16, activation="leaky_relu", negative_slope=slope)
    module = nn.Sequential(trunk, LinearHead(16, 8, gain=1.0))

    report = path_sensitive_(module, torch.zeros(1, 8), mirrored=True)

    matrix = module(torch.eye(8)).T.detach()
    inputs = 3 * torch.randn(32, 8)
    torch.testing.assert_close(module(inputs), inputs @ matrix.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8), rtol=1e-4, atol=1e-4)
    assert len(report.mirrored) == depth


def test_an_absolute_value_cannot_be_mirrored() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(-1.0), nn.Linear(8, 2))

    with pytest.raises(UserError, match="needs a plain chain"):
        path_sensitive_(module, torch.zeros(1, 8), mirrored=True)


def test_weights_are_mirrored_blocks() -> None:
    module = nn.Sequential(PlainTrunk(8, 2, 16), LinearHead(16, 3, gain=0.5))

    path_sensitive_(module, torch.zeros(1, 8), mirrored=True)

    first, inner, head = (layer.weight.detach() for layer in module.modules() if isinstance(layer, nn.Linear))
    assert torch.equal(first[:8], -first[8:])
    block = inner[:8, :8]
    assert torch.equal(inner, torch.cat([torch.cat([block, -block], 1), torch.cat([-block, block], 1)]))
    torch.testing.assert_close(
        block @ block.T, float(block[0] @ block[0]) * torch.eye(8), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(head, torch.cat([head[:, :8], -head[:, :8]], 1))
    torch.testing.assert_close(head[:, :8] @ head[:, :8].T, 0.25 * torch.eye(3))


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_directions_stay_apart_in_64_layers(norm: str) -> None:
    torch.manual_seed(0)
    module = PlainTrunk(64, 64, 64, norm=norm)
    inputs = torch.randn(128, 64)

    path_sensitive_(module, inputs[:1])
    collapsed = mean_cosine(module(inputs).detach())
    path_sensitive_(module, inputs[:1], mirrored=True)
    features = module(inputs).detach()

    assert collapsed > 0.9
    assert mean_cosine(features) <= 0.5
    assert mean_cosine(features) == pytest.approx(1 / math.pi, abs=0.06)
    assert 0.1 <= float(features.std()) <= 2


def test_convolutions_are_mirrored_over_channels() -> None:
    encoder = NatureCNN((4, 36, 36))
    module = nn.Sequential(encoder, PlainTrunk(encoder.out_features, 2, 32), LinearHead(32, 5))

    report = path_sensitive_(module, torch.zeros(1, 4, 36, 36), mirrored=True)

    assert len(report.mirrored) == 5
    one, two = torch.rand(2, 3, 4, 36, 36)
    torch.testing.assert_close(module(one) + module(two), module(one + two), rtol=1e-3, atol=1e-4)


def test_normalized_convolutions_are_mirrored_too() -> None:
    encoder = NatureCNN((4, 36, 36), norm="layer")
    module = nn.Sequential(encoder, PlainTrunk(encoder.out_features, 2, 32, norm="layer"), LinearHead(32, 5))
    images = torch.rand(3, 4, 36, 36)

    report = path_sensitive_(module, images[:1], mirrored=True)

    assert len(report.mirrored) == 5
    torch.testing.assert_close(module(-images), -module(images), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(module(3 * images), module(images), rtol=1e-3, atol=1e-4)


def test_two_heads_read_one_chain() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.policy, self.value = (
                PlainTrunk(8, 3, 8),
                LinearHead(8, 2, 0.01),
                LinearHead(8, 1),
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.trunk(x)
            return self.policy(features), self.value(features).squeeze(-1)

    module = TwoHeads()

    assert len(path_sensitive_(module, torch.zeros(1, 8), mirrored=True).mirrored) == 3
    for output, doubled in zip(module(torch.ones(1, 8)), module(torch.full((1, 8), -2.0)), strict=True):
        torch.testing.assert_close(doubled, -2 * output, rtol=1e-4, atol=1e-5)


def test_odd_widths_and_branched_modules_are_refused() -> None:
    with pytest.raises(UserError, match=r"'layers\.0' has 7 outputs; expected 6 or 8"):
        path_sensitive_(PlainTrunk(8, 2, 7), torch.zeros(1, 8), mirrored=True)
    for module in (ResidualTrunk(8, 5, 8), DenseTrunk(8, 3, 8), PlainTrunk(8, 3, 8, activation="tanh")):
        with pytest.raises(UserError, match="needs a plain chain"):
            path_sensitive_(module, torch.zeros(1, 8), mirrored=True)


@pytest.mark.parametrize("trunk", [ResidualTrunk, MultiSkipTrunk])
def test_one_layer_behind_branches_is_no_chain(trunk) -> None:
    network = nn.Sequential(trunk(6, depth=8, width=16), nn.Linear(16, 2))

    with pytest.raises(UserError, match=r"needs a plain chain .* has none; expected mirrored=False"):
        path_sensitive_(network, torch.zeros(1, 6), mirrored=True)


def test_auto_mirrors_what_can_be_mirrored_and_nothing_else() -> None:
    example = torch.zeros(1, 8)
    others = (
        PlainTrunk(8, 3, 7),
        PlainTrunk(8, 3, 8, activation="tanh"),
        ResidualTrunk(8, 5, 8),
        DenseTrunk(8, 3, 8),
    )

    assert len(path_sensitive_(PlainTrunk(8, 3, 8), example, mirrored="auto").mirrored) == 3
    assert [path_sensitive_(module, example, mirrored="auto").mirrored for module in others] == [[]] * 4
    with pytest.raises(UserError, match="mirrored is 'atuo'; expected True, False or 'auto'"):
        path_sensitive_(PlainTrunk(8, 3, 8), example, mirrored="atuo")  # type: ignore[arg-type]


class TwoChains(nn.Module):
    """Two networks over one input, each a chain of its own, as an actor and a critic."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(PlainTrunk(8, 3, 16), LinearHead(16, 2))
        self.critic = nn.Sequential(PlainTrunk(8, 2, 16), LinearHead(16, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(x), self.critic(x)


def test_first_layers_of_mirrored_chains_draw_their_biases() -> None:
    module, example = TwoChains(), torch.zeros(1, 8)
    torch.manual_seed(3)
    path_sensitive_(module, example, mirrored=True)
    plain = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    torch.manual_seed(3)

    report = path_sensitive_(module, example, mirrored=True, first_bias=0.5)

    firsts = ["actor.0.layers.0", "critic.0.layers.0"]
    assert report.first_biases == firsts
    changed = [name for name, value in module.named_parameters() if not torch.equal(value, plain[name])]
    assert changed == [f"{name}.bias" for name in firsts]
    for network in (module.actor, module.critic):
        bias = network[0].layers[0].bias.detach()
        assert 0.3 < float(bias.abs().max()) <= 0.5
        assert len(bias.abs().unique()) == 16  # one draw for each unit, not mirrored
    assert not torch.equal(module.actor[0].layers[0].bias, module.critic[0].layers[0].bias)


def test_biases_of_a_first_convolution_are_drawn_and_the_seed_decides() -> None:
    drawn = []
    for seed in (0, 0, 1):
        encoder = NatureCNN((4, 36, 36))
        module = nn.Sequential(encoder, PlainTrunk(encoder.out_features, 2, 32), LinearHead(32, 5))
        torch.manual_seed(seed)
        report = path_sensitive_(module, torch.zeros(1, 4, 36, 36), mirrored="auto", first_bias=0.1)
        assert report.first_biases == ["0.convolutions.0"]
        drawn.append(module[0].convolutions[0].bias)

    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_layers_without_a_trained_bias_and_modules_without_a_chain_draw_none() -> None:
    without = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
    frozen = PlainTrunk(8, 2, 8)
    frozen.layers[0].bias.requires_grad_(False)
    before = frozen.layers[0].bias.clone()

    for module in (without, frozen, ResidualTrunk(8, 5, 8)):
        assert path_sensitive_(module, torch.zeros(1, 8), "auto", first_bias=1.0).first_biases == []
    assert torch.equal(frozen.layers[0].bias, before)


def test_a_wrong_range_of_biases_is_told() -> None:
    for wrong in (-0.5, math.inf, math.nan):
        with pytest.raises(UserError, match=r"first_bias is .*; expected a finite number of at least 0"):
            path_sensitive_(PlainTrunk(8, 2, 8), torch.zeros(1, 8), mirrored=True, first_bias=wrong)
    with pytest.raises(UserError, match=r"first_bias is 0\.5, but mirrored is False.*mirrored='auto'"):
        path_sensitive_(PlainTrunk(8, 2, 8), torch.zeros(1, 8), first_bias=0.5)
