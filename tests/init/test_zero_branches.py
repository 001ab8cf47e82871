from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from lit_gfs.errors import UserError
from lit_gfs.init import path_sensitive_
from lit_gfs.networks import DenseTrunk, ImpalaCNN, LinearHead, MultiSkipTrunk, PlainTrunk, ResidualTrunk


class Block(nn.Module):
    """A residual block of any layers, with an optional layer on the stream."""

    def __init__(self, *layers: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.shortcut is None else self.shortcut(x)) + self.branch(x)


def fixup(module: nn.Module, example: Tensor, growth: float = math.e) -> list[str]:
    return path_sensitive_(module, example, growth=growth, branches="zero").zero_branches


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_residual_trunk_starts_without_its_branches(norm: str) -> None:
    trunk, inputs = ResidualTrunk(8, 12, 16, norm), torch.randn(4, 8)

    zeroed = fixup(trunk, inputs[:1])

    assert zeroed == [f"branches.{index}.second" for index in range(5)]
    torch.testing.assert_close(trunk(inputs), trunk.output(trunk.input(inputs)))
    assert all(not branch.second.weight.any() for branch in trunk.branches)


def test_gradients_reach_the_last_layers_at_once_and_the_others_after_a_step() -> None:
    trunk, inputs = nn.Sequential(ResidualTrunk(8, 12, 16), LinearHead(16, 2)), torch.randn(32, 8)
    fixup(trunk, inputs[:1])
    optimizer = torch.optim.SGD(trunk.parameters(), 0.01)

    for step in range(2):
        trunk.zero_grad()
        trunk(inputs).square().mean().backward()
        for branch in trunk[0].branches:
            assert branch.second.weight.grad.any()
            assert bool(branch.first.weight.grad.any()) == bool(step)
        optimizer.step()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_other_layers_get_the_factor_of_fixup(count: int) -> None:
    blocks = 64
    layers = [[nn.Linear(4, 4) for _ in range(count)] for _ in range(blocks)]
    module = nn.Sequential(*(Block(*each) for each in layers))

    report = path_sensitive_(module, torch.zeros(1, 4), growth=math.e, branches="zero")

    # Without activations, gains of sqrt(2) multiply the energy by 2 in each layer.
    expected = (1 / (2**count * blocks)) ** (1 / (2 * count - 2))  # L^(-1 / (2m - 2)) for gains of 1
    assert set(report.branch_scales) == {
        f"{block}.branch.{layer}" for block in range(blocks) for layer in range(count - 1)
    }
    assert min(report.branch_scales.values()) == pytest.approx(expected, rel=1e-2)
    assert max(report.branch_scales.values()) == pytest.approx(expected, rel=1e-2)


def test_a_norm_at_the_end_of_a_branch_becomes_zero_instead_of_the_layer() -> None:
    skipping = MultiSkipTrunk(8, 8, 16, norm="layer")
    pixels = ImpalaCNN((4, 16, 16), norm="layer")
    inputs = torch.randn(3, 8)

    assert fixup(skipping, inputs[:1]) == [f"branches.{index}.layers.5" for index in range(3)]
    ends = fixup(pixels, torch.zeros(1, 4, 16, 16))

    assert all(branch.layers[4].weight.any() for branch in skipping.branches)
    stream = skipping.input(inputs)
    expected = skipping.output(stream * (1 + 3 * skipping.skip_scale))
    torch.testing.assert_close(skipping(inputs), expected)
    assert len(ends) == 6
    assert all(isinstance(pixels.get_submodule(name), nn.GroupNorm) for name in ends)


def test_the_deeper_summand_is_the_branch_and_a_projected_stream_stays() -> None:
    block = Block(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), shortcut=nn.Linear(4, 6))
    even = Block(nn.Linear(4, 6), shortcut=nn.Linear(4, 6))

    assert fixup(block, torch.zeros(1, 4)) == ["branch.2"]
    assert fixup(even, torch.zeros(1, 4)) == []


def test_branches_in_branches_keep_a_stream() -> None:
    inner = Block(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    outer = Block(nn.Linear(4, 4), inner, nn.Linear(4, 4))
    module = nn.Sequential(nn.Linear(4, 4), outer)

    assert fixup(module, torch.zeros(1, 4)) == ["1.branch.1.branch.2", "1.branch.2"]
    module(torch.randn(8, 4)).square().mean().backward()
    assert outer.branch[2].weight.grad.any()


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1
        y.add_(0.5 * F.dropout(self.second(F.relu(self.first(x))), 0.1, self.training))
        return y


def test_sums_in_place_and_products_with_constants_are_seen() -> None:
    assert fixup(InPlace(), torch.zeros(1, 4)) == ["second"]


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(4, 4), nn.ReLU()],  # the gradient of a ReLU at 0 is 0
        [nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False)],
        [nn.Linear(4, 4).requires_grad_(False)],
        [weight_norm(nn.Linear(4, 4))],
        [*[nn.Linear(4, 4)] * 2],  # the same layer twice
    ],
    ids=["activation", "norm without weight", "frozen", "parametrized", "called twice"],
)
def test_layers_that_could_not_learn_from_zero_keep_their_weights(layers: list[nn.Module]) -> None:
    module = nn.Sequential(nn.Linear(4, 4), Block(*layers), nn.Linear(4, 4))
    inputs = torch.randn(16, 4)

    assert fixup(module, inputs[:1]) == []

    output = module(inputs)
    assert not torch.equal(output, module[2](module[0](inputs)))
    assert output.isfinite().all()


def test_modules_without_branches_are_as_before() -> None:
    for kind in (PlainTrunk, DenseTrunk):
        weights = []
        for branches in ("path", "zero"):
            torch.manual_seed(0)
            module = kind(8, 4, 8)
            assert path_sensitive_(module, torch.zeros(1, 8), branches=branches).zero_branches == []
            weights.append(torch.cat([p.flatten() for p in module.parameters()]))
        assert torch.equal(*weights)


def test_an_unknown_start_of_branches_is_told() -> None:
    with pytest.raises(UserError, match="branches is 'zeros'; expected one of 'path', 'zero'"):
        path_sensitive_(nn.Linear(8, 8), torch.zeros(1, 8), branches="zeros")  # type: ignore[arg-type]
