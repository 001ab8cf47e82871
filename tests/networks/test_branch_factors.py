from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from lit_gfs.errors import UserError
from lit_gfs.init import path_sensitive_, path_shares
from lit_gfs.networks import LinearHead, MultiSkipTrunk, ResidualTrunk, TrainedFactor, named_layers
from lit_gfs.optim import Kron

BRANCHED = [ResidualTrunk, MultiSkipTrunk]


@pytest.mark.parametrize("trunk", BRANCHED)
@pytest.mark.parametrize(("kind", "value"), [("inverse_sqrt", 0.5), ("inverse", 0.25), ("none", 1.0)])
def test_a_constant_factor_scales_every_branch(trunk: type, kind: str, value: float) -> None:
    scaled, plain = trunk(6, 9, 8, branch_factor=kind), trunk(6, 9, 8)
    scaled.load_state_dict(plain.state_dict())  # a constant is no part of the state
    inputs = torch.randn(5, 6)

    stream = skip = plain.input(inputs)
    for branch in plain.branches:
        stream = stream + value * branch(stream)
        if trunk is MultiSkipTrunk:
            stream = stream + skip

    assert len(plain.branches) == 4
    torch.testing.assert_close(scaled(inputs), plain.output(stream))


@pytest.mark.parametrize("trunk", BRANCHED)
def test_a_trained_factor_starts_at_zero_and_is_a_layer_that_learns(trunk: type) -> None:
    network, inputs = (
        nn.Sequential(trunk(6, 7, 8, branch_factor="trained"), nn.Linear(8, 2)),
        torch.randn(9, 6),
    )
    factors = [module for module in network.modules() if isinstance(module, TrainedFactor)]
    assert [float(factor.value) for factor in factors] == [0.0] * 3
    assert {f"0.branches.{index}.factor" for index in range(3)} <= named_layers(network).keys()

    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(2):
        optimizer.zero_grad()
        network(inputs).square().mean().backward()
        for factor, branch in zip(factors, network[0].branches, strict=True):
            assert factor.value.grad.any()
            weights = [layer.weight for layer in branch.modules() if isinstance(layer, nn.Linear)]
            assert [bool(weight.grad.any()) for weight in weights] == [bool(step)] * 2
        optimizer.step()

    saved = io.BytesIO()
    torch.save(network.state_dict(), saved)
    saved.seek(0)
    again = nn.Sequential(trunk(6, 7, 8, branch_factor="trained"), nn.Linear(8, 2))
    again.load_state_dict(torch.load(saved))
    assert all(float(branch.factor.value) != 0 for branch in again[0].branches)
    assert torch.equal(again(inputs), network(inputs))


@pytest.mark.parametrize("build", [Kron, torch.optim.SGD, torch.optim.RAdam])
def test_optimizers_take_a_trained_factor(build: type) -> None:
    trunk = ResidualTrunk(6, 5, 8, branch_factor="trained")
    optimizer = build(trunk.parameters(), lr=0.01)

    for _ in range(3):
        optimizer.zero_grad()
        trunk(torch.randn(9, 6)).square().mean().backward()
        optimizer.step()

    assert all(float(branch.factor.value) != 0 for branch in trunk.branches)
    assert all(parameter.isfinite().all() for parameter in trunk.parameters())


@pytest.mark.parametrize("trunk", BRANCHED)
@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("branches", ["path", "zero"])
def test_path_initialization_of_shut_branches(trunk: type, norm: str, branches: str) -> None:
    network = nn.Sequential(trunk(8, 8, 8, norm, branch_factor="trained"), LinearHead(8, 3))
    inputs = torch.randn(4, 8)

    report = path_sensitive_(network, inputs[:1], branches=branches)

    for name, share in report.shares.items():
        assert share == (0 if "branches" in name else 1), name
    assert report.zero_branches == []  # a factor of 0 and a layer of 0 would both stay 0
    for branch in network[0].branches:
        for layer in (layer for layer in branch.modules() if isinstance(layer, nn.Linear)):
            torch.testing.assert_close(layer.weight @ layer.weight.T, 2 * torch.eye(8), rtol=1e-4, atol=1e-4)
    assert network(inputs).isfinite().all()


def test_path_initialization_counts_constant_factors() -> None:
    shares, scales = [], []
    for kind in ("none", "inverse_sqrt", "inverse"):
        trunk = ResidualTrunk(8, 33, 8, branch_factor=kind)
        report = path_sensitive_(trunk, torch.zeros(1, 8))
        scales.append(min(report.branch_scales.values()))
        shares.append(path_shares(trunk, torch.zeros(1, 8))["branches.0.first"])

    # The constant is a part of the branch, so the weights keep more: (1 + 2 c^2 s^4)^16 = 2.
    growth = (2 ** (1 / 16) - 1) / 2
    assert scales[:2] == pytest.approx([growth**0.25, (16 * growth) ** 0.25], rel=1e-4)
    assert scales[2] == 1.0
    assert shares[0] == pytest.approx(shares[1]) == pytest.approx(1 - 2 ** (-1 / 16), rel=1e-4)
    assert shares[2] < shares[0]


def test_an_unknown_factor_is_told() -> None:
    with pytest.raises(UserError, match=r"ResidualTrunk has no branch_factor 'invers'.*inverse"):
        ResidualTrunk(6, branch_factor="invers")  # type: ignore[arg-type]
