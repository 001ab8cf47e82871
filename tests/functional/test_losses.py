from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from lit_gfs.functional.losses import (
    categorical_entropy,
    categorical_log_prob,
    clipped_policy_loss,
    conservative_penalty,
    explained_variance,
    gaussian_entropy,
    gaussian_log_prob,
    max_q_value,
    normalize_advantage,
    of_action,
    value_loss,
    weighted_mean,
)


def test_the_outputs_of_one_action_are_picked() -> None:
    values = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
    logits = torch.arange(12.0).view(2, 2, 3)

    assert of_action(values, torch.tensor([1, 0])).tolist() == [5.0, 2.0]
    assert of_action(logits, torch.tensor([1, 0])).tolist() == [[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]


@pytest.mark.parametrize("outputs", [torch.zeros(4, 2), torch.zeros(4, 2, 3)])
def test_actions_are_not_broadcast(outputs: Tensor) -> None:
    with pytest.raises(ValueError, match="expected one shape"):
        of_action(outputs, torch.zeros(4, 1))


def test_weights_multiply_the_losses() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0])

    assert weighted_mean(losses, None).item() == 3.0
    assert weighted_mean(losses, torch.tensor([1.0, 0.5, 0.25])).item() == pytest.approx(3.5 / 3)
    with pytest.raises(ValueError, match="expected one shape"):
        weighted_mean(losses, torch.ones(3, 1))


def test_double_q_learning_removes_the_bias_of_the_maximum() -> None:
    generator = torch.Generator().manual_seed(0)
    online, target = torch.randn(2, 20_000, 8, generator=generator)

    # Every true value is 0; the expected maximum of 8 standard normals is 1.42.
    assert max_q_value(target).mean().item() == pytest.approx(1.42, abs=0.05)
    assert of_action(target, online.argmax(-1)).mean().item() == pytest.approx(0.0, abs=0.05)


def test_clipped_policy_loss_by_hand() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0])

    result = clipped_policy_loss(ratio.log(), torch.zeros(5), advantage, clip=0.2)

    # Gains count up to 1.2 and losses down to 0.8; moves in the wrong direction count in full.
    assert result.loss.item() == pytest.approx(-(2.4 - 3.0 + 1.0 - 1.6 + 1.1) / 5)
    assert result.clip_fraction.item() == pytest.approx(0.8)
    assert result.approx_kl.item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratio.tolist()) / 5)


def test_clipped_policy_loss_stops_the_gradient_outside_of_the_interval() -> None:
    log_prob = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])

    result = clipped_policy_loss(log_prob, torch.zeros(4), advantage, clip=0.2)
    result.loss.backward()

    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == pytest.approx([0.0, 1.5 / 4, -0.5 / 4, 0.0])
    assert not result.approx_kl.requires_grad
    assert not result.clip_fraction.requires_grad


def test_at_the_old_policy_the_gradient_is_the_policy_gradient() -> None:
    logits = torch.randn(64, 4, dtype=torch.float64, requires_grad=True)
    action, advantage = torch.randint(0, 4, (64,)), torch.randn(64, dtype=torch.float64)
    log_prob = categorical_log_prob(logits, action)

    result = clipped_policy_loss(log_prob, log_prob.detach(), advantage, clip=0.1)

    (gradient,) = torch.autograd.grad(result.loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-(log_prob * advantage).mean(), logits)
    torch.testing.assert_close(gradient, expected)
    assert result.approx_kl == 0
    assert result.clip_fraction == 0


def test_approx_kl_estimates_the_kl_divergence() -> None:
    torch.manual_seed(0)
    old, new = Normal(0.0, 1.0), Normal(0.3, 1.2)
    sample = old.sample((200_000,))

    result = clipped_policy_loss(new.log_prob(sample), old.log_prob(sample), torch.zeros(200_000), 0.2)

    assert result.approx_kl.item() == pytest.approx(kl_divergence(old, new).item(), rel=0.05)


def test_value_loss_is_half_the_squared_error() -> None:
    value, target = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])

    assert value_loss(value, target).item() == pytest.approx(0.5 * (1 + 9) / 2)
    assert value_loss(value, target, old_value=torch.zeros(2)).item() == pytest.approx(2.5)


def test_clipped_value_loss_takes_the_larger_error() -> None:
    old_value = torch.zeros(3)
    value = torch.tensor([1.0, 1.0, 0.1], requires_grad=True)
    target = torch.tensor([2.0, -2.0, 2.0])

    loss = value_loss(value, target, old_value, clip=0.2)
    loss.backward()

    # Too far towards the target: the error at 0.2. Away from it: the full error. Within: the plain one.
    assert loss.item() == pytest.approx(0.5 * (1.8**2 + 3.0**2 + 1.9**2) / 3)
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([0.0, 3.0 / 3, -1.9 / 3])


def test_value_loss_refuses_unfit_arguments() -> None:
    with pytest.raises(ValueError, match=r"value \(4, 1\), target \(4,\)"):
        value_loss(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match="needs old_value"):
        value_loss(torch.zeros(4), torch.zeros(4), clip=0.2)


def test_normalized_advantages_have_mean_0_and_deviation_1() -> None:
    normalized = normalize_advantage(torch.tensor([3.0, 5.0, 10.0]))

    # Mean 6, sample standard deviation sqrt(13).
    assert normalized.tolist() == pytest.approx([x / math.sqrt(13) for x in (-3, -1, 4)])
    assert normalize_advantage(torch.full((4,), 2.0)).tolist() == [0.0] * 4


def test_a_single_advantage_stays() -> None:
    assert normalize_advantage(torch.tensor([3.0])).tolist() == [3.0]


def test_explained_variance() -> None:
    target = torch.tensor([[1.0, 2.0], [3.0, 6.0]])

    assert explained_variance(target, target) == 1
    assert explained_variance(target + 5, target) == 1
    assert explained_variance(torch.zeros(2, 2), target) == 0
    assert explained_variance(-target, target).item() == pytest.approx(-3)
    assert explained_variance(target, torch.ones(2, 2)) == 0


def test_categorical_against_torch_distributions() -> None:
    logits = 5 * torch.randn(3, 7, 4, dtype=torch.float64)
    action = torch.randint(0, 4, (3, 7))
    reference = Categorical(logits=logits)

    torch.testing.assert_close(categorical_log_prob(logits, action), reference.log_prob(action))
    torch.testing.assert_close(categorical_entropy(logits), reference.entropy())


def test_categorical_of_a_nearly_certain_policy_stays_finite() -> None:
    logits = torch.tensor([1000.0, 0.0, -1000.0], requires_grad=True)

    entropy = categorical_entropy(logits)
    entropy.backward()

    assert entropy == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("state_dependent", [True, False])
def test_gaussian_against_torch_distributions(state_dependent: bool) -> None:
    mean, action = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    log_std = torch.randn(3, 7, 4, dtype=torch.float64) if state_dependent else torch.randn(4).double()
    reference = Independent(Normal(mean, log_std.exp()), 1)

    torch.testing.assert_close(gaussian_log_prob(mean, log_std, action), reference.log_prob(action))
    torch.testing.assert_close(gaussian_entropy(log_std.expand_as(mean)), reference.entropy())


def test_gaussian_gradients_against_torch_distributions() -> None:
    mean, action = torch.randn(2, 5, 3, dtype=torch.float64)
    log_std = torch.randn(3, dtype=torch.float64)
    inputs = (mean.requires_grad_(), log_std.requires_grad_())

    gradients = torch.autograd.grad(gaussian_log_prob(mean, log_std, action).sum(), inputs)

    reference = Normal(mean, log_std.exp()).log_prob(action).sum()
    for gradient, expected in zip(gradients, torch.autograd.grad(reference, inputs), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_densities_refuse_to_broadcast() -> None:
    with pytest.raises(ValueError, match="expected one shape"):
        categorical_log_prob(torch.zeros(4, 2), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="expected one shape"):
        gaussian_log_prob(torch.zeros(4, 2), torch.zeros(2), torch.zeros(2))


def test_the_conservative_penalty_by_hand() -> None:
    q_values = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]], requires_grad=True)
    penalty = conservative_penalty(q_values, torch.tensor([1, 0]))
    # Row 0: log(1 + 3) - log 3; row 1: (2 + log 2) - 2.
    assert float(penalty) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    penalty.backward()
    # The softmax, less 1 at the chosen action, over a batch of 2.
    assert q_values.grad is not None
    torch.testing.assert_close(q_values.grad, torch.tensor([[0.125, -0.125], [-0.25, 0.25]]))
