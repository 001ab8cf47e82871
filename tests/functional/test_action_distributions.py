"""Distributions of actions against those of torch."""

from __future__ import annotations

import pytest
import torch
from torch import distributions

from lit_gfs.functional.action_distributions import Categorical, Gaussian, MultiCategorical, logits_by_part


@pytest.mark.parametrize("choices", [(4, 2, 3), (3, 3), (2, 2, 2), (5,)])
def test_several_choices_are_independent_categoricals(choices: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 7, sum(choices), dtype=torch.float64, requires_grad=True)
    action = torch.stack([torch.randint(count, (6, 7)) for count in choices], -1)
    references = [distributions.Categorical(logits=part) for part in logits.split(list(choices), -1)]
    policy = MultiCategorical(logits, choices)

    log_prob = torch.stack([each.log_prob(action[..., part]) for part, each in enumerate(references)]).sum(0)
    entropy = torch.stack([each.entropy() for each in references]).sum(0)

    torch.testing.assert_close(policy.log_prob(action), log_prob)
    torch.testing.assert_close(policy.entropy(), entropy)
    mode = torch.stack([each.probs.argmax(-1) for each in references], -1)
    assert torch.equal(policy.mode(), mode)
    (got,) = torch.autograd.grad((policy.log_prob(action) + policy.entropy()).sum(), logits)
    (expected,) = torch.autograd.grad((log_prob + entropy).sum(), logits)
    torch.testing.assert_close(got, expected)


def test_switches_are_bernoullis() -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 3, 2)
    action = torch.randint(2, (9, 3))
    reference = distributions.Bernoulli(logits=logits[..., 1] - logits[..., 0])
    policy = MultiCategorical(logits.flatten(1), (2, 2, 2))

    torch.testing.assert_close(policy.log_prob(action), reference.log_prob(action.float()).sum(-1))
    torch.testing.assert_close(policy.entropy(), reference.entropy().sum(-1))


def test_samples_are_as_frequent_as_they_are_probable() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    policy = MultiCategorical(logits.expand(200_000, 5), (3, 2))

    sample = policy.sample()

    assert sample.shape == (200_000, 2)
    for part, expected in enumerate((logits[:3].softmax(-1), logits[3:].softmax(-1))):
        shares = sample[:, part].bincount(minlength=3) / len(sample)
        torch.testing.assert_close(shares[: len(expected)], expected, atol=0.005, rtol=0)
    assert sample[:, 1].max() == 1
    together = (sample == torch.tensor([1, 1])).all(-1).float().mean()
    torch.testing.assert_close(
        together, logits[:3].softmax(-1)[1] * logits[3:].softmax(-1)[1], atol=0.005, rtol=0
    )


def test_draws_are_those_of_torch() -> None:
    logits, mean, log_std = torch.randn(50, 4), torch.randn(50, 3), torch.randn(3)
    torch.manual_seed(1)
    expected = (
        torch.multinomial(logits.softmax(-1), 1).squeeze(-1),
        torch.normal(mean, log_std.exp().expand(50, 3)),
    )
    torch.manual_seed(1)
    assert torch.equal(Categorical(logits).sample(), expected[0])
    torch.testing.assert_close(Gaussian(mean, log_std).sample(), expected[1])


def test_numbers_are_an_independent_normal() -> None:
    mean, log_std, action = torch.randn(5, 3), torch.randn(3), torch.randn(5, 3)
    reference = distributions.Independent(distributions.Normal(mean, log_std.exp()), 1)
    policy = Gaussian(mean, log_std)

    torch.testing.assert_close(policy.log_prob(action), reference.log_prob(action))
    torch.testing.assert_close(policy.entropy(), reference.entropy())
    assert torch.equal(policy.mode(), mean)


def test_a_choice_that_a_part_does_not_have_is_never_made() -> None:
    rows = logits_by_part(torch.full((2, 5), -50.0), (3, 2))
    assert rows.shape == (2, 2, 3)
    assert rows.softmax(-1)[:, 1].tolist() == [[0.5, 0.5, 0.0]] * 2
