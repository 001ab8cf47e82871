from __future__ import annotations

import pytest
import torch

from lit_gfs.functional.exploration import epsilon_uniform, noisy_action

LOW, HIGH = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 8.0])


def test_a_share_of_actions_is_uniform_between_the_bounds() -> None:
    torch.manual_seed(0)
    action = torch.tensor([0.25, 3.0]).expand(40_000, 2)

    mixed = epsilon_uniform(action, LOW, HIGH, 0.5)

    changed = (mixed != action).any(-1)
    assert float(changed.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert (mixed[~changed] == action[~changed]).all()
    random = mixed[changed]
    assert ((random >= LOW) & (random <= HIGH)).all()
    torch.testing.assert_close(random.mean(0), (LOW + HIGH) / 2, atol=0.05, rtol=0)
    torch.testing.assert_close(random.std(0), (HIGH - LOW) / 12**0.5, atol=0.05, rtol=0)


def test_nothing_or_everything_is_random_at_the_ends() -> None:
    action = torch.zeros(500, 2)

    assert torch.equal(epsilon_uniform(action, LOW, HIGH, 0.0), action)
    assert torch.equal(epsilon_uniform(action, LOW, HIGH, torch.tensor(0.0)), action)
    assert (epsilon_uniform(action, LOW, HIGH, 1.0) != action).all()


def test_noise_is_in_halves_of_the_range_and_ends_at_the_bounds() -> None:
    torch.manual_seed(0)
    middle = ((LOW + HIGH) / 2).expand(40_000, 2)

    noisy = noisy_action(middle, LOW, HIGH, 0.2)
    torch.testing.assert_close(noisy.std(0), 0.2 * (HIGH - LOW) / 2, atol=0.01, rtol=0.02)

    clipped = noisy_action(middle, LOW, HIGH, 10.0, 0.5)
    assert torch.equal((clipped - middle).abs().amax(0), 0.5 * (HIGH - LOW) / 2)
    at_the_bound = noisy_action(HIGH.expand(1_000, 2), LOW, HIGH, 0.2)
    assert (at_the_bound <= HIGH).all()
    assert (at_the_bound == HIGH).any()


def test_without_noise_actions_stay() -> None:
    action = torch.tensor([[0.5, 3.0]])
    assert torch.equal(noisy_action(action, LOW, HIGH, 0.0), action)
