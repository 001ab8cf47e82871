from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lit_gfs.errors import UserError
from lit_gfs.networks import PlainTrunk, ResidualBranch, ResidualTrunk, Trunk

TRUNKS = [PlainTrunk, ResidualTrunk]


def linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


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


@pytest.mark.parametrize(("depth", "branches"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (8, 3), (12, 5)])
def test_residual_trunk_has_as_many_branches_as_fit(depth: int, branches: int) -> None:
    trunk = ResidualTrunk(5, depth=depth, width=7)

    assert len(trunk.branches) == branches
    for branch in trunk.branches:
        assert isinstance(branch, ResidualBranch)
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
    trunk = build(5, depth=1, width=7, activation=activation)
    features = torch.randn(3, 5)

    torch.testing.assert_close(trunk(features), function(linears(trunk)[0](features)))


@pytest.mark.parametrize("build", TRUNKS)
def test_every_activation_is_a_module_of_its_own(build: type[Trunk]) -> None:
    trunk = build(5, depth=8, width=7)

    activations = [module for module in trunk.modules() if isinstance(module, nn.ReLU)]

    # A residual branch has one activation for its two layers, and the stream is activated at its end.
    assert len(activations) == (8 if build is PlainTrunk else 3 + 2)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (PlainTrunk, {"depth": -1}, "PlainTrunk needs depth >= 0, got -1"),
        (ResidualTrunk, {"depth": 0}, "ResidualTrunk needs depth >= 1, got 0"),
        (PlainTrunk, {"width": 0}, "PlainTrunk needs width >= 1, got 0"),
        (PlainTrunk, {"norm": "layre"}, "no norm 'layre'; .* layer, rms, none; did you mean 'layer'"),
        (ResidualTrunk, {"activation": "rely"}, "no activation 'rely'.* did you mean 'relu'"),
    ],
)
def test_invalid_arguments_are_refused(
    build: type[Trunk], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(5, **arguments)


@pytest.mark.parametrize("name", ["PlainTrunk", "ResidualTrunk"])
def test_the_command_line_configures_all_but_the_input(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--trunk", type=Callable[[int], Trunk])

    settings = ["--trunk.depth=3", "--trunk.width=8", "--trunk.norm=rms", "--trunk.activation=elu"]
    parsed = parser.parse_args([f"--trunk=lit_gfs.networks.{name}", *settings])
    trunk = parser.instantiate(parsed).trunk(5)

    assert (type(trunk).__name__, trunk.in_features, trunk.depth, trunk.width) == (name, 5, 3, 8)
    assert any(isinstance(module, nn.RMSNorm) for module in trunk.modules())
    assert any(isinstance(module, nn.ELU) for module in trunk.modules())
