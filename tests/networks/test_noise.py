from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lit_gfs.networks import LinearHead, NoisyLinear, PlainTrunk
from lit_gfs.networks.heads import ActionValueHead
from lit_gfs.networks.noise import make_noisy, sigmas_of

C = math.sqrt(2 / math.pi)
"""The variance of f(e) = sign(e) sqrt(|e|) of a standard normal number: the mean of |e|."""


def test_the_variance_of_an_output_by_hand() -> None:
    torch.manual_seed(0)
    layer = NoisyLinear(3, 2)
    nn.init.normal_(layer.weight_sigma)
    nn.init.normal_(layer.bias_sigma)
    x = torch.tensor([1.0, -2.0, 0.5])

    outputs = layer(x.expand(200_000, 3)).double()

    mean = x @ layer.weight.T + layer.bias
    # f(eps_out) * (sum of sigma_w f(eps_in) x + sigma_b), with independent factors.
    variance = C * (C * (layer.weight_sigma.square() @ x.square()) + layer.bias_sigma.square())
    torch.testing.assert_close(outputs.mean(0).float(), mean.detach(), atol=0.02, rtol=0)
    torch.testing.assert_close(outputs.var(0).float(), variance.detach(), rtol=0.03, atol=0)


def test_the_noise_is_that_of_a_noisy_weight_and_bias() -> None:
    """What a layer with the weight mu + sigma f(eps_out) f(eps_in)^T computes, row by row."""
    torch.manual_seed(0)
    layer, x = NoisyLinear(4, 3), torch.randn(5, 4)
    nn.init.normal_(layer.weight_sigma)

    torch.manual_seed(1)
    output = layer(x)

    torch.manual_seed(1)
    drawn = torch.randn_like(x), torch.empty(5, 3).normal_()
    into, out = (each.sign() * each.abs().sqrt() for each in drawn)
    for row in range(5):
        weight = layer.weight + layer.weight_sigma * out[row][:, None] * into[row]
        bias = layer.bias + layer.bias_sigma * out[row]
        torch.testing.assert_close(output[row], weight @ x[row] + bias)


@pytest.mark.parametrize("layer", [NoisyLinear(4, 3), ActionValueHead(4, 3, noisy=True)])
def test_a_layer_that_is_reset_has_its_initial_sigmas_again(layer: NoisyLinear | ActionValueHead) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(math.nan)
    layer.reset_parameters()
    weight_sigma, bias_sigma = sigmas_of(layer)
    assert torch.equal(weight_sigma, torch.full_like(layer.weight, 0.25))
    assert torch.equal(bias_sigma, torch.full_like(layer.bias, 0.25))
    assert layer.weight.isfinite().all()


def test_rows_and_calls_have_noise_of_their_own() -> None:
    torch.manual_seed(0)
    layer = NoisyLinear(2, 1)
    x = torch.ones(2, 2)

    with torch.no_grad():
        draws = torch.stack([layer(x).squeeze(-1) for _ in range(5_000)])

    correlation = torch.corrcoef(torch.stack([draws[:, 0], draws[:, 1], draws[:, 0].roll(1)]))
    assert (correlation - torch.eye(3)).abs().max() < 0.06


def test_evaluation_is_without_noise_and_draws_nothing() -> None:
    layer = NoisyLinear(3, 2).eval()
    x, state = torch.randn(4, 3), torch.get_rng_state()

    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)
    assert torch.equal(torch.get_rng_state(), state)


def test_sigma_begins_as_in_the_paper_and_is_trained() -> None:
    layer = NoisyLinear(16, 2)

    layer(torch.randn(3, 16)).square().sum().backward()

    assert torch.equal(layer.weight_sigma, torch.full((2, 16), 0.5 / 4))
    assert torch.equal(layer.bias_sigma, torch.full((2,), 0.5 / 4))
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("bias", [True, False])
def test_plain_layers_become_noisy_ones_with_their_weights(bias: bool) -> None:
    trunk = nn.Sequential(PlainTrunk(3, depth=2, width=8), nn.Linear(8, 8, bias=bias), LinearHead(8, 2))
    x = torch.randn(5, 3)
    before = trunk(x)

    make_noisy(trunk)

    assert len([each for each in trunk.modules() if isinstance(each, NoisyLinear)]) == 3
    assert type(trunk[2]) is LinearHead, "a head decides for itself"
    assert not torch.allclose(trunk(x), before)
    torch.testing.assert_close(trunk.eval()(x), before)
