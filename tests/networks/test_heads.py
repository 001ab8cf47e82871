from __future__ import annotations

import pytest
import torch

from lit_gfs.errors import UserError
from lit_gfs.networks import ActionValueHead, LinearHead
from lit_gfs.networks.heads import dueling_sum


@pytest.mark.parametrize("gain", [0.01, 1.0])
@pytest.mark.parametrize("outputs", [1, 6, 80])
def test_the_gain_is_every_singular_value(gain: float, outputs: int) -> None:
    head = LinearHead(64, outputs, gain)

    singular = torch.linalg.svdvals(head.weight.detach())

    torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=0)
    assert not head.bias.any()
    assert head(torch.randn(2, 3, 64)).shape == (2, 3, outputs)


def test_a_small_gain_starts_a_policy_close_to_uniform() -> None:
    policy = LinearHead(64, 4, gain=0.01)(torch.randn(1000, 64)).softmax(-1)

    assert (policy - 0.25).abs().max() < 0.02


def test_a_negative_gain_is_refused() -> None:
    with pytest.raises(UserError, match="got -1"):
        LinearHead(4, 2, gain=-1)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize(("size", "shape"), [(1, (2, 3, 4)), (5, (2, 3, 4, 5))])
def test_outputs_of_all_actions_have_a_shape(
    size: int, shape: tuple[int, ...], dueling: bool, noisy: bool
) -> None:
    head = ActionValueHead(64, 4, size, dueling, noisy)
    features = torch.randn(2, 3, 64)

    assert head(features).shape == shape
    assert torch.equal(head.eval()(features), head(features))
    assert torch.equal(head.train()(features), head(features)) != noisy


def test_a_plain_head_of_action_values_is_a_linear_layer() -> None:
    torch.manual_seed(0)
    head = ActionValueHead(8, 3)
    torch.manual_seed(0)
    linear = LinearHead(8, 3, gain=1.0)
    features = torch.randn(5, 8)

    assert torch.equal(head(features), linear(features))
    assert head.state_dict().keys() == linear.state_dict().keys()


@pytest.mark.parametrize("size", [1, 5])
def test_the_mean_over_the_actions_is_the_value_of_the_state(size: int) -> None:
    head = ActionValueHead(8, 3, size, dueling=True)
    features = torch.randn(6, 8)

    outputs = head(features).view(6, 3, size)

    streams = torch.nn.functional.linear(features, head.weight, head.bias).view(6, 4, size)
    torch.testing.assert_close(outputs.mean(1), streams[:, 0])
    advantage = outputs - outputs.mean(1, keepdim=True)
    torch.testing.assert_close(advantage, streams[:, 1:] - streams[:, 1:].mean(1, keepdim=True))


def test_a_constant_does_not_move_between_the_streams() -> None:
    value, advantage = torch.randn(4, 1, 2), torch.randn(4, 3, 2)

    torch.testing.assert_close(dueling_sum(value, advantage + 5.0), dueling_sum(value, advantage))


def test_a_head_beyond_the_memory_of_the_machine_is_refused_before_it_is_made() -> None:
    with pytest.raises(
        UserError, match=r"weights of a head with 1,000,000,000,000 outputs would take [\d,]+ GB"
    ):
        LinearHead(16, 10**12)
