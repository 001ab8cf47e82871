from __future__ import annotations

import torch
from torch import nn

from lit_gfs.metrics.gradient_flow import parameters_by_layer
from lit_gfs.networks import PlainTrunk, named_layers


def test_lists_linear_and_normalization_layers_in_order() -> None:
    trunk = PlainTrunk(3, depth=2, width=4, norm="layer")

    layers = named_layers(trunk)

    assert list(layers) == ["layers.0", "layers.1", "layers.3", "layers.4"]
    assert [type(layer) for layer in layers.values()] == [nn.Linear, nn.LayerNorm] * 2


def test_leaves_out_frozen_layers_but_keeps_partly_frozen_ones() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    net[1].bias.requires_grad_(False)

    assert list(named_layers(net)) == ["1"]
    assert parameters_by_layer(named_layers(net)) == {"1": [net[1].weight]}


def test_lists_a_shared_module_once() -> None:
    shared = nn.Linear(2, 2)

    assert named_layers(nn.Sequential(shared, nn.ReLU(), shared)) == {"0": shared}


def test_a_shared_parameter_belongs_to_the_first_layer_only() -> None:
    first, tied, tied_with_bias = (nn.Linear(2, 2, bias=bias) for bias in (True, False, True))
    tied.weight = tied_with_bias.weight = first.weight
    net = nn.Sequential(first, tied, tied_with_bias)

    assert named_layers(net) == {"0": first, "2": tied_with_bias}
    assert parameters_by_layer(named_layers(net)) == {
        "0": [first.weight, first.bias],
        "2": [tied_with_bias.bias],
    }


def test_every_trainable_parameter_is_in_exactly_one_layer() -> None:
    net = nn.ModuleDict({"trunk": PlainTrunk(3, 3, norm="rms"), "gru": nn.GRUCell(2, 2)})

    listed = [parameter for owned in parameters_by_layer(named_layers(net)).values() for parameter in owned]

    assert len(listed) == len(set(listed))
    assert set(listed) == set(net.parameters())


def test_a_module_that_owns_parameters_goes_by_its_class_name() -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_std = nn.Parameter(torch.zeros(2))
            self.mean = nn.Linear(2, 2)

    assert list(named_layers(Policy())) == ["Policy", "mean"]
    assert list(parameters_by_layer(named_layers(Policy()))) == ["Policy", "mean"]
