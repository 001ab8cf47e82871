"""Resets of units by hand, and the fresh weights that they get."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lit_gfs.init import path_sensitive_
from lit_gfs.networks import LinearHead, MinAtarCNN, Network, PlainTrunk, named_layers
from lit_gfs.plasticity.fresh_weights import can_redraw, draw_by, draw_layers, orthogonal_gains
from lit_gfs.plasticity.unit_layers import map_units
from lit_gfs.plasticity.unit_resets import reset_units_


def chain(*, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    norms = [nn.LayerNorm(4) if norm else nn.Identity() for _ in range(2)]
    return nn.Sequential(
        *(nn.Linear(3, 4), norms[0], nn.ReLU(), nn.Linear(4, 4), norms[1], nn.ReLU(), nn.Linear(4, 2))
    )


def fresh_of(module: nn.Module, value: float = 7.0) -> dict[nn.Parameter, Tensor]:
    return {parameter: torch.full_like(parameter, value) for parameter in module.parameters()}


def flags(*chosen: int) -> Tensor:
    return torch.tensor([index in chosen for index in range(4)])


def test_incoming_weights_are_drawn_and_outgoing_ones_become_0() -> None:
    module = chain()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    units = map_units(module, torch.zeros(1, 3), named_layers(module)).layers

    entries = reset_units_(units, {"0": flags(1)}, fresh_of(module))

    expected = {name: value.clone() for name, value in before.items()}
    expected["0.weight"][1], expected["0.bias"][1], expected["3.weight"][:, 1] = 7, 7, 0
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in expected.items())
    names = {parameter: name for name, parameter in module.named_parameters()}
    assert {names[parameter] for parameter in entries} == {"0.weight", "0.bias", "3.weight"}
    for parameter, changed in entries.items():
        assert torch.equal(changed, expected[names[parameter]] != before[names[parameter]])


def test_a_weight_between_two_chosen_units_is_drawn() -> None:
    module = chain()
    units = map_units(module, torch.zeros(1, 3), named_layers(module)).layers
    entries = reset_units_(units, {"0": flags(0, 1), "3": flags(2)}, fresh_of(module))
    weight = module[3].weight
    assert (weight[2] == 7).all()  # the row of the chosen reader, in the columns of chosen units too
    assert (weight[[0, 1, 3]][:, [0, 1]] == 0).all()
    assert (module[6].weight[:, 2] == 0).all()
    assert int(entries[weight].sum()) == 4 + 3 * 2


def test_a_normalization_in_between_starts_anew_at_the_unit() -> None:
    module = chain(norm=True)
    with torch.no_grad():
        module[1].weight.fill_(3.0)
        module[1].bias.fill_(-2.0)
    units = map_units(module, torch.zeros(1, 3), named_layers(module)).layers
    fresh = draw_layers(module[:2], {}, seed=1)
    reset_units_(units, {"0": flags(3)}, fresh)
    assert module[1].weight.tolist() == [3, 3, 3, 1]
    assert module[1].bias.tolist() == [-2, -2, -2, 0]


def test_the_reset_of_a_dead_unit_keeps_the_function_bit_for_bit() -> None:
    torch.manual_seed(0)
    network = Network(
        (2, 10, 10), partial(MinAtarCNN, channels=4), partial(PlainTrunk, width=4), "orthogonal"
    )
    module = nn.Sequential(network, LinearHead(4, 3))
    with torch.no_grad():
        network.encoder.convolutions[0].bias[2] = -100.0
        network.trunk.layers[0].bias[1] = -100.0
    images = torch.rand(16, 2, 10, 10)
    before = module(images)
    layers = named_layers(module)
    units = map_units(module, images[:1], layers).layers
    chosen = {"0.encoder.convolutions.0": flags(2), "0.trunk.layers.0": flags(1)}

    reset_units_(units, chosen, draw_layers(layers.values(), orthogonal_gains(module), seed=3))

    assert torch.equal(module(images), before)
    activated = network.encoder.convolutions(images)
    assert activated[:, 2].any()  # the unit is alive again
    assert (network.trunk.layers[0].weight[:, 128:192][[0, 2, 3]] == 0).all()


def test_the_reset_of_an_active_unit_takes_its_contribution_away() -> None:
    module = chain()
    inputs = torch.randn(32, 3)
    hidden = module[:6](inputs)
    expected = module(inputs) - hidden[:, [1]] * module[6].weight[:, 1]
    units = map_units(module, inputs[:1], named_layers(module)).layers
    reset_units_(units, {"3": flags(1)}, fresh_of(module))
    torch.testing.assert_close(module(inputs), expected)


# -- fresh weights -----------------------------------------------------------------------------------------


def test_orthogonal_layers_are_drawn_with_their_gains_and_others_by_pytorch() -> None:
    network = Network((6,), None, partial(PlainTrunk, depth=2, width=6), "orthogonal")
    head = LinearHead(6, 2, gain=0.01)
    plain = nn.Linear(6, 6)
    module = nn.Sequential(network, head, plain)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    state = torch.get_rng_state()

    fresh = draw_layers(named_layers(module).values(), orthogonal_gains(module), seed=5)

    trunk = network.trunk.layers[0].weight
    torch.testing.assert_close(fresh[trunk] @ fresh[trunk].T, 2 * torch.eye(6))
    torch.testing.assert_close(fresh[head.weight] @ fresh[head.weight].T, 1e-4 * torch.eye(2))
    assert not fresh[network.trunk.layers[0].bias].any()
    assert fresh[plain.weight].abs().max() <= 1 / math.sqrt(6)
    assert fresh[plain.bias].any()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), before, strict=True))
    again = draw_layers(named_layers(module).values(), orthogonal_gains(module), seed=5)
    assert all(torch.equal(fresh[parameter], again[parameter]) for parameter in fresh)
    other = draw_layers([plain], {}, seed=6)
    assert not torch.equal(other[plain.weight], fresh[plain.weight])


def test_a_network_with_pytorchs_initialization_has_no_gain() -> None:
    network = Network((6,), None, partial(PlainTrunk, depth=2, width=6), "torch")
    assert orthogonal_gains(network) == {}


def test_an_initialization_of_the_whole_module_is_drawn_on_the_side() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    initialize = partial(path_sensitive_, module, torch.zeros(1, 4), mirrored=True)

    fresh = draw_by(initialize, module, seed=2)

    assert all(torch.equal(*pair) for pair in zip(module.parameters(), before, strict=True))
    first, middle = fresh[module[0].weight], fresh[module[2].weight]
    assert torch.equal(first[:4], -first[4:])
    assert torch.equal(middle[:4, :4], middle[4:, 4:])
    assert torch.equal(draw_by(initialize, module, seed=2)[module[0].weight], first)


def test_an_initialization_that_fails_leaves_the_module_as_it_was() -> None:
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()

    def initialize() -> None:
        nn.init.zeros_(module.weight)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        draw_by(initialize, module, seed=0)
    assert torch.equal(module.weight, before)


def test_layers_without_an_initialization_of_their_own_cannot_be_drawn() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    class Partly(nn.Linear):
        """It inherits a ``reset_parameters`` that does not know the scale."""

        def __init__(self) -> None:
            super().__init__(2, 2)
            self.scale = nn.Parameter(torch.ones(2))

    assert can_redraw(nn.LayerNorm(3))
    assert not can_redraw(Own())
    assert not can_redraw(Partly())
    assert not can_redraw(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
