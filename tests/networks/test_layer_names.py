"""Layers are counted as a reader counts them, and alike in all agents."""

from __future__ import annotations

import pytest
from torch import nn

from lit_gfs.agents import DQN, PPO, PQN, Classifier
from lit_gfs.networks import (
    DenseTrunk,
    ImpalaCNN,
    MultiSkipTrunk,
    NatureCNN,
    PlainTrunk,
    ResidualTrunk,
    named_layers,
    numbered_layers,
)
from support.specs import continuous_spec, discrete_spec

IMAGES = (4, 84, 84)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (PlainTrunk(4, 2, 8), ["layer_01", "layer_02"]),
        (PlainTrunk(4, 2, 8, norm="layer"), ["layer_01", "layer_norm_01", "layer_02", "layer_norm_02"]),
        (DenseTrunk(4, 2, 8, norm="rms"), ["layer_01", "layer_01.norm_01", "layer_02", "layer_02.norm_01"]),
        (ResidualTrunk(4, 3, 8), ["input", "branch_01.first", "branch_01.second"]),
        (ResidualTrunk(4, 2, 8, norm="layer"), ["input", "output_norm_01", "output_01", "output_norm_02"]),
        (MultiSkipTrunk(4, 3, 8, norm="none"), ["input_01", "branch_01.layer_01", "branch_01.layer_02"]),
        (NatureCNN(IMAGES), ["convolution_01", "convolution_02", "convolution_03"]),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["layer_01", "layer_02"]),
    ],
)
def test_layers_are_counted_from_one(module: nn.Module, names: list[str]) -> None:
    numbered = numbered_layers(module)

    assert list(numbered) == names
    assert list(numbered.values()) == list(named_layers(module).values())


def test_names_sort_in_the_order_of_the_network() -> None:
    names = list(numbered_layers(PlainTrunk(4, 30, 8)))

    assert names == sorted(names)
    assert names[-1] == "layer_30"


def test_every_layer_of_a_nested_network_has_its_own_name() -> None:
    assert len(numbered_layers(ImpalaCNN(IMAGES))) == len(named_layers(ImpalaCNN(IMAGES)))


def test_a_name_that_the_user_has_taken_is_not_given_twice() -> None:
    module = nn.Module()
    module.layers = nn.Sequential(nn.Linear(2, 2))
    module.layer_01 = nn.Linear(2, 2)

    assert list(numbered_layers(module)) == ["layers.0", "layer_01"]


@pytest.mark.parametrize("agent", [DQN, PQN, PPO, Classifier])
def test_the_network_that_acts_has_the_same_names_in_all_agents(agent: type) -> None:
    layers = list(agent(discrete_spec(), trunk=lambda inputs: PlainTrunk(inputs, 2, 8)).named_layers())

    assert layers[:3] == ["trunk.layer_01", "trunk.layer_02", "head"]
    others = ["value.trunk.layer_01", "value.trunk.layer_02", "value.head"] if agent is PPO else []
    assert layers[3:] == others


def test_a_shared_network_of_ppo_is_the_policys() -> None:
    agent = PPO(discrete_spec(), shared_network=True)

    assert list(agent.named_layers()) == ["trunk.layer_01", "trunk.layer_02", "head", "value.head"]


def test_the_free_standard_deviation_is_a_layer() -> None:
    assert "log_std" in PPO(continuous_spec()).named_layers()
