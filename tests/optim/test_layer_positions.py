from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lit_gfs.networks import (
    DenseTrunk,
    ImpalaCNN,
    LinearHead,
    MultiSkipTrunk,
    NatureCNN,
    PlainTrunk,
    ResidualTrunk,
)
from lit_gfs.optim.layer_positions import layer_positions


def kinds(module: nn.Module, example: object) -> dict[str, str]:
    names = {layer: name for name, layer in module.named_modules()}
    return {names[layer]: position.kind for layer, position in layer_positions(module, example).items()}


@pytest.mark.parametrize("trunk", [PlainTrunk, ResidualTrunk, MultiSkipTrunk, DenseTrunk])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_the_first_and_the_last_matrix_of_a_network_are_found(trunk: type, norm: str) -> None:
    network = nn.Sequential(trunk(8, 8, 16, norm), LinearHead(16, 3))

    found = kinds(network, torch.zeros(1, 8))

    linears = [name for name, each in network.named_modules() if isinstance(each, nn.Linear)]
    assert set(found) == set(linears)
    assert [name for name in linears if found[name] == "first"] == linears[:1]
    assert [name for name in linears if found[name] == "last"] == ["1"]
    assert {layer.fan_in for layer in layer_positions(network, torch.zeros(1, 8)).values()} <= {8, 16, 24}


class ActorCritic(nn.Module):
    """An actor, and a critic with two heads, over one observation."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(PlainTrunk(8, 3, 16), LinearHead(16, 2))
        self.critic = PlainTrunk(8, 2, 16)
        self.heads = nn.ModuleList([LinearHead(16, 1), LinearHead(16, 1)])
        self.discriminator = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.critic(x)
        return self.actor(x), *(head(features) for head in self.heads)


def test_every_network_has_its_own_first_and_last_matrices() -> None:
    found = kinds(ActorCritic(), torch.zeros(1, 8))

    assert {name for name, kind in found.items() if kind == "first"} == {
        "actor.0.layers.0",
        "critic.layers.0",
    }
    assert {name for name, kind in found.items() if kind == "last"} == {"actor.1", "heads.0", "heads.1"}
    assert {name for name, kind in found.items() if kind == "hidden"} == {
        "actor.0.layers.3",
        "actor.0.layers.6",
        "critic.layers.3",
    }


@pytest.mark.parametrize("encoder", [NatureCNN, ImpalaCNN])
def test_convolutions_count_channels_and_so_does_the_layer_behind_them(encoder: type) -> None:
    pixels = encoder((4, 36, 36))
    network = nn.Sequential(pixels, PlainTrunk(pixels.out_features, 2, 128), LinearHead(128, 3))

    positions = layer_positions(network, torch.zeros(1, 4, 36, 36, dtype=torch.uint8))

    convolutions = [each for each in pixels.modules() if isinstance(each, nn.Conv2d)]
    assert positions[convolutions[0]] == ("first", 4)
    for convolution in convolutions[1:]:
        assert positions[convolution] == ("hidden", convolution.in_channels)
    assert positions[network[1].layers[0]] == ("hidden", convolutions[-1].out_channels)
    assert positions[network[1].layers[3]] == ("hidden", 128)


class Recurrent(nn.Module):
    """Layers that path energies do not know, called with keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.memory = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.tokens(tokens)
        attended, _ = self.attention(embedded, embedded, embedded)
        return self.head(self.memory(embedded + attended)[0])


def test_attention_and_recurrence_have_positions_too() -> None:
    found = kinds(Recurrent(), {"tokens": torch.zeros(1, 5, dtype=torch.long)})

    assert found == {"tokens": "first", "attention": "hidden", "memory": "hidden", "head": "last"}


def test_frozen_parametrized_and_rectified_in_place() -> None:
    frozen = nn.Linear(8, 8).requires_grad_(False)
    network = nn.Sequential(frozen, nn.ReLU(inplace=True), weight_norm(nn.Linear(8, 8)), nn.Linear(8, 2))

    assert kinds(network, torch.zeros(1, 8)) == {"0": "first", "2": "hidden", "3": "last"}


def test_nothing_of_the_module_changes() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    network[2].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    example, generator = torch.randn(4, 8), torch.get_rng_state()

    layer_positions(network, example)

    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [each.training for each in network] == [True, True, False, True]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in network.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not example.requires_grad
