from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution

from lit_gfs.functional.squashed_gaussian import SquashedGaussian, bounded_log_std

CENTER, SCALE = torch.tensor([1.0, -3.0]), torch.tensor([2.0, 0.5])


def policy(batch: int = 4) -> SquashedGaussian:
    generator = torch.Generator().manual_seed(0)
    mean, log_std = torch.randn(2, batch, 2, generator=generator)
    return SquashedGaussian(mean, log_std, CENTER, SCALE)


def reference(of: SquashedGaussian) -> TransformedDistribution:
    gaussian = Normal(of.mean, of.log_std.exp())
    return TransformedDistribution(gaussian, [TanhTransform(), AffineTransform(of.center, of.scale)])


def test_densities_are_those_of_torch_between_the_bounds() -> None:
    distribution = policy()
    action = CENTER + SCALE * torch.tensor([[0.0, 0.0], [0.5, -0.9], [-0.99, 0.3], [0.7, 0.999]])

    expected = reference(distribution).log_prob(action).sum(-1)

    torch.testing.assert_close(distribution.log_prob(action), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.8, -1.0), (-1.5, 0.5)])
def test_the_density_has_mass_one_in_the_units_of_the_action(mean: float, log_std: float) -> None:
    low, high = -1.0, 5.0
    count = 200_000
    action = (low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count).unsqueeze(-1)
    of_all = torch.full((count, 1), 1.0, dtype=torch.float64)
    middle, half = torch.tensor([2.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    distribution = SquashedGaussian(mean * of_all, log_std * of_all, middle, half)

    mass = distribution.log_prob(action).exp().sum() * (high - low) / count

    assert float(mass) == pytest.approx(1.0, abs=1e-3)


def test_a_samples_density_is_that_of_its_action() -> None:
    distribution = policy(1_000)
    torch.manual_seed(1)

    action, log_prob = distribution.sample_with_log_prob()

    assert ((action >= CENTER - SCALE) & (action <= CENTER + SCALE)).all()
    inner = ((action - CENTER) / SCALE).abs().amax(-1) < 0.99  # atanh loses digits close to the bounds
    chosen = SquashedGaussian(distribution.mean[inner], distribution.log_std[inner], CENTER, SCALE)
    torch.testing.assert_close(log_prob[inner], chosen.log_prob(action[inner]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mean", [-50.0, 50.0])
def test_densities_stay_exact_where_tanh_rounds_to_one(mean: float) -> None:
    distribution = SquashedGaussian(
        torch.full((3, 2), mean, requires_grad=True), torch.zeros(3, 2), CENTER, SCALE
    )
    torch.manual_seed(0)

    action, log_prob = distribution.sample_with_log_prob()

    # 1 - tanh(u)^2 = 4 exp(-2 |u|) for large |u|; log N(u) is that of a standard normal deviate.
    torch.manual_seed(0)
    deviate = torch.randn(3, 2)
    gaussian = -0.5 * deviate.square() - 0.5 * math.log(2 * math.pi)
    slope = math.log(4) - 2 * (mean + deviate).abs() + SCALE.log()
    torch.testing.assert_close(log_prob, (gaussian - slope).sum(-1))
    assert (action == CENTER + math.copysign(1, mean) * SCALE).all()
    (gradient,) = torch.autograd.grad(log_prob.sum(), distribution.mean)
    torch.testing.assert_close(gradient, torch.full((3, 2), math.copysign(2.0, mean)))


def test_the_mode_is_the_squashed_mean() -> None:
    distribution = policy()
    torch.testing.assert_close(distribution.mode(), CENTER + SCALE * distribution.mean.tanh())


def test_samples_have_the_moments_of_torchs() -> None:
    distribution = SquashedGaussian(
        torch.tensor([0.3, -1.0]).expand(50_000, 2),
        torch.tensor([-0.5, 0.2]).expand(50_000, 2),
        CENTER,
        SCALE,
    )
    torch.manual_seed(0)
    ours = distribution.sample()
    theirs = reference(distribution).sample()

    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.02, rtol=0)


def test_log_standard_deviations_stay_in_their_range_and_keep_a_gradient() -> None:
    output = torch.tensor([-9.0, 0.0, 3.0, 9.0], requires_grad=True)

    log_std = bounded_log_std(output, -5.0, 2.0)

    torch.testing.assert_close(log_std[1].detach(), torch.tensor(-1.5))
    assert log_std.min() >= -5
    assert log_std.max() <= 2
    (gradient,) = torch.autograd.grad(log_std[:3].sum(), output)
    assert (gradient[1:3] > 0).all()
