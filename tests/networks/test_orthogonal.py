from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lit_gfs.init import orthogonal_
from lit_gfs.networks import ImpalaCNN, NatureCNN, PlainTrunk, ResidualTrunk

MODULES = {
    "plain": lambda: PlainTrunk(17, depth=3, width=32, norm="layer"),
    "residual": lambda: ResidualTrunk(17, depth=4, width=32, norm="rms"),
    "nature": lambda: NatureCNN((4, 36, 36)),
    "impala": lambda: ImpalaCNN((4, 16, 16)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("gain", [math.sqrt(2), 0.5])
def test_every_singular_value_is_the_gain_and_every_bias_zero(name: str, gain: float) -> None:
    module = orthogonal_(MODULES[name](), gain)

    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    assert layers
    for layer in layers:
        singular = torch.linalg.svdvals(layer.weight.detach().flatten(1))
        torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=0)
        assert not layer.bias.any()


def test_normalization_and_bias_free_layers() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4))
    with torch.no_grad():
        module[1].weight.fill_(0.3)
        module[1].bias.fill_(0.2)

    assert orthogonal_(module) is module
    assert module[1].weight.tolist() == pytest.approx([0.3] * 4)
    assert module[1].bias.tolist() == pytest.approx([0.2] * 4)
    torch.testing.assert_close(module[0].weight @ module[0].weight.T, 2 * torch.eye(4))


def test_the_seed_decides() -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(orthogonal_(nn.Linear(8, 8)).weight)

    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_signals_keep_their_scale_through_relu_layers() -> None:
    torch.manual_seed(0)
    deep = PlainTrunk(128, depth=16, width=128)
    signal = torch.randn(256, 128)

    before, after = deep(signal).square().mean(), orthogonal_(deep)(signal).square().mean()

    assert before < 0.01
    assert 0.2 < after < 2
