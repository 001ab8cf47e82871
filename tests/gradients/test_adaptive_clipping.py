"""Adaptive gradient clipping by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lit_gfs.errors import UserError
from lit_gfs.gradients import AdaptiveClipper
from lit_gfs.gradients.adaptive_clipping import unit_norms


def test_each_unit_is_limited_by_its_own_weights() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.6, 0.8]])  # norms 5, 0, 1
    bias = torch.tensor([0.0, 6.0, 8.0])  # one unit of norm 10
    gradient = torch.tensor([[0.6, 0.8], [3.0, 4.0], [0.03, 0.04]])  # norms 1, 5, 0.05
    of_bias = torch.tensor([3.0, 0.0, 4.0])  # norm 5

    done = AdaptiveClipper(clip_factor=0.1, eps=1e-2).apply(
        {"layer": [gradient, of_bias]}, {"layer": [weight, bias]}
    )

    # Limits: 0.1 * 5, 0.1 * eps, 0.1 * 1 (not reached), and 0.1 * 10 for the biases together.
    expected = torch.tensor([[0.3, 0.4], [0.6e-3, 0.8e-3], [0.03, 0.04]])
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(of_bias, torch.tensor([0.6, 0.0, 0.8]))
    raw, applied = 1 + 25 + 0.05**2 + 25, 0.25 + 1e-6 + 0.05**2 + 1
    assert float(done.norms) == pytest.approx(math.sqrt(raw))
    assert float(done.scales) == pytest.approx(math.sqrt(applied / raw))


def test_the_unit_of_a_convolution_is_an_output_channel() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    rows, of_rows = weight.flatten(1).clone(), gradient.flatten(1).clone()
    clipper = AdaptiveClipper(clip_factor=0.9)
    clipper.apply({"image": [gradient]}, {"image": [weight]})
    clipper.apply({"rows": [of_rows]}, {"rows": [rows]})
    assert torch.equal(gradient.flatten(1), of_rows)
    assert unit_norms(weight).shape == (4, 1, 1, 1)
    longest = (unit_norms(gradient) / unit_norms(weight)).max()
    assert float(longest) == pytest.approx(0.9, rel=1e-5)


def test_a_short_gradient_stays_bit_for_bit() -> None:
    torch.manual_seed(0)
    gradient = 1e-4 * torch.randn(5, 5)
    before = gradient.clone()
    done = AdaptiveClipper(clip_factor=0.1).apply(
        {"layer": [gradient, None]}, {"layer": [torch.ones(5, 5)] * 2}
    )
    assert torch.equal(gradient, before)
    assert float(done.scales) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stops_all_clipping(value: float) -> None:
    first, second = torch.full((2, 2), 7.0), torch.tensor([[value]])
    AdaptiveClipper().apply({"a": [first], "b": [second]}, {"a": [torch.ones(2, 2)], "b": [torch.ones(1, 1)]})
    assert (first == 7).all()


def test_half_precision_is_clipped_by_norms_in_float32() -> None:
    weight = torch.full((1, 1000), 100.0, dtype=torch.float16)  # the square of its norm overflows
    gradient = torch.full((1, 1000), 100.0, dtype=torch.float16)
    AdaptiveClipper(clip_factor=0.5).apply({"layer": [gradient]}, {"layer": [weight]})
    assert float(gradient[0, 0]) == pytest.approx(50, rel=1e-3)


def test_sparse_gradients_stay_as_they_are() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().mul(1e6).backward()
    assert embedding.weight.grad is not None
    values = embedding.weight.grad.coalesce()._values()
    AdaptiveClipper().apply({"layer": [values]}, {"layer": [embedding.weight.detach()]})
    assert (values == 1e6).all()


def test_it_works_in_a_loop_of_ones_own() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    (1e3 * network(torch.ones(2, 3))).sum().backward()
    AdaptiveClipper(clip_factor=0.01).scale_(network)
    first = network[0].weight
    assert first.grad is not None
    ratios = unit_norms(first.grad) / unit_norms(first.detach())
    assert float(ratios.max()) == pytest.approx(0.01, rel=1e-4)


def test_arguments_are_checked() -> None:
    with pytest.raises(UserError, match="clip_factor is 0; expected a number above 0"):
        AdaptiveClipper(clip_factor=0)
    with pytest.raises(UserError, match="eps is -1"):
        AdaptiveClipper(eps=-1)
