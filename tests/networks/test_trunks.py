from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lit_gfs.errors import UserError
from lit_gfs.networks import (
    CReLU,
    DenseTrunk,
    FourierFeatures,
    MultiSkipBranch,
    MultiSkipTrunk,
    PlainTrunk,
    ResidualBranch,
    ResidualTrunk,
    Trunk,
)
from lit_gfs.networks.orthogonal import orthogonal_

TRUNKS = [PlainTrunk, ResidualTrunk, MultiSkipTrunk, DenseTrunk]


def linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


class ByHand:
    """Applies a trunk's layers one after the other, in the order in which they are asked for."""

    def __init__(self, trunk: Trunk) -> None:
        for parameter in trunk.parameters():
            nn.init.normal_(parameter, std=0.5)  # so that an exchanged or forgotten layer changes the output
        self.linears = iter(linears(trunk))
        self.norms = iter([layer for layer in trunk.modules() if isinstance(layer, nn.LayerNorm)])

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        layer = next(self.linears)
        return x @ layer.weight.T + layer.bias

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize over features; the identity once no layer is left, as in a trunk without any."""
        layer = next(self.norms, None)
        if layer is None:
            return x
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * layer.weight + layer.bias

    def all_used(self) -> bool:
        return next(self.linears, None) is None and next(self.norms, None) is None


@pytest.mark.parametrize("build", TRUNKS)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_depth_counts_linear_layers(build: type[Trunk], depth: int, norm: str) -> None:
    trunk = build(5, depth=depth, width=7, norm=norm)

    assert len(linears(trunk)) == depth
    assert (trunk.in_features, trunk.out_features) == (5, 7)
    assert trunk(torch.randn(2, 3, 5)).shape == (2, 3, 7)


@pytest.mark.parametrize("build", TRUNKS)
@pytest.mark.parametrize("depth", [1, 2, 3, 8, 15])
@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_gradient_reaches_every_parameter(build: type[Trunk], depth: int, norm: str) -> None:
    trunk = build(5, depth=depth, width=32, norm=norm, activation="tanh")

    trunk(torch.randn(16, 5)).square().sum().backward()

    for name, parameter in trunk.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_plain_trunk_without_layers_is_the_identity() -> None:
    trunk = PlainTrunk(5, depth=0)
    features = torch.randn(3, 5)

    assert trunk.out_features == 5
    assert trunk(features) is features


def test_plain_trunk_is_linear_then_norm_then_activation() -> None:
    trunk = PlainTrunk(5, depth=2, width=7, norm="layer", activation="silu")
    features = torch.randn(3, 5)

    expected = features
    for layer in linears(trunk):
        expected = expected @ layer.weight.T + layer.bias
        expected = (expected - expected.mean(1, keepdim=True)) / (
            expected.var(1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        expected = expected * expected.sigmoid()

    torch.testing.assert_close(trunk(features), expected)


@pytest.mark.parametrize(
    ("build", "kind"), [(ResidualTrunk, ResidualBranch), (MultiSkipTrunk, MultiSkipBranch)]
)
@pytest.mark.parametrize(("depth", "branches"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (8, 3), (12, 5)])
def test_a_trunk_has_as_many_branches_as_fit(
    build: type[ResidualTrunk] | type[MultiSkipTrunk], kind: type[nn.Module], depth: int, branches: int
) -> None:
    trunk = build(5, depth=depth, width=7)

    assert len(trunk.branches) == branches
    for branch in trunk.branches:
        assert isinstance(branch, kind)
        assert len(linears(branch)) == 2


@pytest.mark.parametrize("depth", [3, 4])
def test_residual_trunk_computes_its_formula(depth: int) -> None:
    trunk = ResidualTrunk(5, depth=depth, width=7, norm="rms", activation="relu")
    features = torch.randn(3, 5)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()

    (branch,) = trunk.branches
    stream = trunk.input(features)
    stream = stream + branch.second(branch.first(norm(stream)).relu())
    expected = norm(stream).relu()
    if depth == 4:
        expected = norm(linears(trunk.output)[0](expected)).relu()

    torch.testing.assert_close(trunk(features), expected)


@pytest.mark.parametrize("depth", [1, 2])
def test_residual_trunk_without_branches_is_a_plain_trunk(depth: int) -> None:
    residual = ResidualTrunk(5, depth=depth, width=7, norm="layer")
    plain = PlainTrunk(5, depth=depth, width=7, norm="layer")
    plain.load_state_dict(dict(zip(plain.state_dict(), residual.state_dict().values(), strict=True)))
    features = torch.randn(3, 5)

    torch.testing.assert_close(residual(features), plain(features))


def test_silent_branches_leave_the_stream_alone() -> None:
    trunk = ResidualTrunk(5, depth=21, width=7)
    for branch in trunk.branches:
        nn.init.zeros_(branch.second.weight)
        nn.init.zeros_(branch.second.bias)
    features = torch.randn(3, 5)

    torch.testing.assert_close(trunk(features), trunk.input(features).relu())


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("skip_scale", [1.0, 0.3])
def test_multi_skip_trunk_computes_its_formula(depth: int, norm: str, skip_scale: float) -> None:
    trunk = MultiSkipTrunk(5, depth=depth, width=7, norm=norm, activation="silu")
    assert trunk.skip_scale == 1
    trunk.skip_scale.fill_(skip_scale)
    by_hand, act = ByHand(trunk), nn.functional.silu
    features = torch.randn(2, 3, 5)

    injected = by_hand.norm(by_hand.linear(features))
    stream = injected
    for _ in range({1: 0, 2: 0, 3: 1, 8: 3}[depth]):
        hidden = by_hand.norm(by_hand.linear(act(stream)))
        stream = stream + by_hand.norm(by_hand.linear(act(hidden))) + skip_scale * injected
    expected = act(by_hand.norm(stream))
    if depth % 2 == 0:
        expected = act(by_hand.norm(by_hand.linear(expected)))

    assert by_hand.all_used()
    torch.testing.assert_close(trunk(features), expected)


def test_the_skip_scale_is_saved_and_not_trained() -> None:
    trunk, other = MultiSkipTrunk(5), MultiSkipTrunk(5)
    trunk.skip_scale.fill_(0.25)

    other.load_state_dict(trunk.state_dict())

    assert other.skip_scale == 0.25
    assert "skip_scale" not in dict(trunk.named_parameters())


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_dense_trunk_computes_its_formula(depth: int, norm: str) -> None:
    trunk = DenseTrunk(5, depth=depth, width=7, norm=norm, activation="silu")
    by_hand = ByHand(trunk)
    features = torch.randn(2, 3, 5)

    expected = nn.functional.silu(by_hand.norm(by_hand.linear(features)))
    for _ in range(depth - 1):
        read = torch.cat([expected, features], dim=-1)
        expected = nn.functional.silu(by_hand.norm(by_hand.linear(read)))

    assert by_hand.all_used()
    torch.testing.assert_close(trunk(features), expected)


@pytest.mark.parametrize("build", TRUNKS)
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", torch.relu),
        ("tanh", torch.tanh),
        ("elu", torch.nn.functional.elu),
        ("gelu", torch.nn.functional.gelu),
        ("silu", torch.nn.functional.silu),
    ],
)
def test_activation(
    build: type[Trunk], activation: str, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    trunk = build(5, depth=1, width=7, norm="none", activation=activation)
    features = torch.randn(3, 5)

    torch.testing.assert_close(trunk(features), function(linears(trunk)[0](features)))


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (PlainTrunk, 8),
        (DenseTrunk, 8),
        # 3 branches, one activation each; one at the end of the stream and one after the output layer.
        (ResidualTrunk, 3 + 2),
        (MultiSkipTrunk, 3 * 2 + 2),
    ],
)
def test_every_activation_is_a_module_of_its_own(build: type[Trunk], count: int) -> None:
    trunk = build(5, depth=8, width=7)

    assert len([module for module in trunk.modules() if isinstance(module, nn.ReLU)]) == count


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (PlainTrunk, {"depth": -1}, "PlainTrunk needs depth >= 0, got -1"),
        (ResidualTrunk, {"depth": 0}, "ResidualTrunk needs depth >= 1, got 0"),
        (MultiSkipTrunk, {"depth": 0}, "MultiSkipTrunk needs depth >= 1, got 0"),
        (DenseTrunk, {"depth": 0}, "DenseTrunk needs depth >= 1, got 0"),
        (PlainTrunk, {"width": 0}, "PlainTrunk needs width >= 1, got 0"),
        (PlainTrunk, {"norm": "layre"}, "no norm 'layre'; .* layer, rms, none; did you mean 'layer'"),
        (MultiSkipTrunk, {"width": 0}, "MultiSkipTrunk needs width >= 1, got 0"),
        (MultiSkipTrunk, {"norm": "rsm"}, "MultiSkipTrunk has no norm 'rsm'.* did you mean 'rms'"),
        (ResidualTrunk, {"activation": "rely"}, "no activation 'rely'.* did you mean 'relu'"),
        (DenseTrunk, {"activation": "slu"}, "DenseTrunk has no activation 'slu'.* did you mean .*'silu'"),
    ],
)
def test_invalid_arguments_are_refused(
    build: type[Trunk], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(5, **arguments)


@pytest.mark.parametrize("name", [build.__name__ for build in TRUNKS])
def test_the_command_line_configures_all_but_the_input(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--trunk", type=Callable[[int], Trunk])

    settings = ["--trunk.depth=3", "--trunk.width=8", "--trunk.norm=rms", "--trunk.activation=elu"]
    parsed = parser.parse_args([f"--trunk=lit_gfs.networks.{name}", *settings])
    trunk = parser.instantiate(parsed).trunk(5)

    assert (type(trunk).__name__, trunk.in_features, trunk.depth, trunk.width) == (name, 5, 3, 8)
    assert any(isinstance(module, nn.RMSNorm) for module in trunk.modules())
    assert any(isinstance(module, nn.ELU) for module in trunk.modules())


@pytest.mark.parametrize("build", TRUNKS)
def test_a_leaky_trunk_has_its_slope_everywhere(build: type[Trunk]) -> None:
    trunk = build(5, depth=8, width=8, activation="leaky_relu", negative_slope=0.5)
    relu = build(5, depth=8, width=8)

    slopes = [layer.negative_slope for layer in trunk.modules() if isinstance(layer, nn.LeakyReLU)]

    assert slopes == [0.5] * sum(isinstance(layer, nn.ReLU) for layer in relu.modules())
    assert not any(isinstance(layer, nn.ReLU) for layer in trunk.modules())
    assert (trunk.gain, relu.gain) == (pytest.approx((2 / 1.25) ** 0.5), 2**0.5)


def test_a_slope_is_between_0_and_1_and_belongs_to_a_leaky_relu() -> None:
    with pytest.raises(
        UserError, match=r"PlainTrunk has negative_slope -0\.1; expected a number from 0 to 1"
    ):
        PlainTrunk(5, activation="leaky_relu", negative_slope=-0.1)
    with pytest.raises(UserError, match=r"negative_slope 0\.5, but its activation is relu; expected activ"):
        PlainTrunk(5, negative_slope=0.5)


# -- activations with two features of each unit ----------------------------------------------------------


@pytest.mark.parametrize("activation", ["crelu", "fourier"])
@pytest.mark.parametrize("kind", [PlainTrunk, DenseTrunk])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_two_features_of_each_unit_leave_the_width(kind: Any, activation: Any, norm: Any) -> None:
    trunk = kind(5, depth=3, width=16, activation=activation, norm=norm)
    linear = [layer for layer in trunk.modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [8, 8, 8]
    assert trunk(torch.randn(2, 4, 5)).shape == (2, 4, trunk.out_features) == (2, 4, 16)


def test_their_features_by_hand() -> None:
    units = torch.tensor([[1.0, -2.0]])
    assert CReLU()(units).tolist() == [[1.0, 0.0, 0.0, 2.0]]
    angles = torch.tensor([[0.0, math.pi / 2]])
    torch.testing.assert_close(FourierFeatures()(angles), torch.tensor([[0.0, 1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("activation", ["crelu", "fourier"])
def test_the_gain_keeps_the_size_of_signals(activation: Any) -> None:
    torch.manual_seed(0)
    trunk = orthogonal_(PlainTrunk(64, depth=12, width=256, activation=activation))
    features = trunk(torch.randn(32, 64))
    size = features.square().mean().sqrt()
    assert 0.4 < size < 1.2


@pytest.mark.parametrize("kind", [ResidualTrunk, MultiSkipTrunk])
@pytest.mark.parametrize("activation", ["crelu", "fourier"])
def test_a_stream_of_features_is_refused(kind: Any, activation: Any) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__} has the activation {activation}, which makes 2"):
        kind(4, depth=4, width=8, activation=activation)


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(UserError, match="PlainTrunk with the activation crelu needs an even width, got 7"):
        PlainTrunk(4, width=7, activation="crelu")
