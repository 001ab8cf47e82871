"""Names of weights, and the norms that rules share."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lit_gfs.metrics.gradient_flow import parameters_by_layer
from lit_gfs.networks import named_layers
from lit_gfs.plasticity.weight_rule import layer_of, named_weights, norms, root_mean_squares


def test_weights_are_named_after_layer_and_parameter() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1, bias=False))
    layers = named_layers(net)
    named = named_weights(layers, parameters_by_layer(layers))
    assert list(named) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]
    assert named["2.weight"] is net[2].weight
    assert layer_of("trunk.layer_01.weight") == "trunk.layer_01"


def test_weights_that_are_computed_or_frozen_or_shared_are_left_out() -> None:
    net = nn.Sequential(weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight.requires_grad_(False)
    net[2].bias = net[1].bias
    layers = named_layers(net)
    assert list(named_weights(layers, parameters_by_layer(layers))) == ["0.bias", "1.bias", "2.weight"]


def test_norms_are_accumulated_in_full_precision() -> None:
    tensors = [torch.full((3, 4), 2.0), torch.tensor([3.0, -4.0], dtype=torch.bfloat16)]
    assert norms(tensors).dtype == torch.float32
    torch.testing.assert_close(norms(tensors), torch.tensor([math.sqrt(48), 5.0]))
    torch.testing.assert_close(norms(tensors, math.inf, [4.0, 0.5]), torch.tensor([0.5, 8.0]))
    torch.testing.assert_close(root_mean_squares(tensors), torch.tensor([2.0, math.sqrt(12.5)]))
    torch.testing.assert_close(root_mean_squares(tensors, [2.0, 1.0]), torch.tensor([1.0, math.sqrt(12.5)]))
    assert norms([torch.ones(1, dtype=torch.float64), torch.ones(1)]).dtype == torch.float64
