from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gfs.errors import UserError
from lit_gfs.functional.value_distributions import C51, HLGauss, Scalar, value_distribution

NO = torch.tensor([False])


def c51_by_loops(probabilities: Tensor, places: Tensor, v_min: float, v_max: float, atoms: int) -> Tensor:
    """Project as Bellemare et al. (2017, algorithm 1) write it, number by number."""
    width = (v_max - v_min) / (atoms - 1)
    result = torch.zeros(len(places), atoms, dtype=torch.float64)
    for row, (place, mass) in enumerate(zip(places.tolist(), probabilities.tolist(), strict=True)):
        for z, p in zip(place, mass, strict=True):
            b = (min(max(z, v_min), v_max) - v_min) / width
            low, high = math.floor(b), math.ceil(b)
            if low == high:
                result[row, low] += p
            else:
                result[row, low] += p * (high - b)
                result[row, high] += p * (b - low)
    return result


def test_a_projection_by_hand() -> None:
    # Atoms -1, 0, 1. The reward 0.5 and the discount 0.5 move them to 0, 0.5 and 1.
    logits = torch.tensor([[0.2, 0.3, 0.5]]).log()

    target = C51(-1, 1, 3).bootstrapped(torch.tensor([0.5]), logits, NO, torch.tensor([0.5]))

    torch.testing.assert_close(target, torch.tensor([[0.0, 0.2 + 0.15, 0.15 + 0.5]]))


def test_a_projection_is_that_of_the_papers_algorithm() -> None:
    generator = torch.Generator().manual_seed(0)
    values = C51(-3.0, 5.0, 17)
    places = 6 * torch.randn(40, 17, generator=generator, dtype=torch.float64)
    places[0] = values.support(places)  # exactly on the atoms
    probabilities = torch.rand(40, 17, generator=generator, dtype=torch.float64)
    probabilities /= probabilities.sum(-1, keepdim=True)

    projected = values.projected(probabilities, places)

    torch.testing.assert_close(projected, c51_by_loops(probabilities, places, -3.0, 5.0, 17))
    torch.testing.assert_close(projected.sum(-1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(projected[0], probabilities[0])


def test_a_terminal_step_leaves_the_reward_alone() -> None:
    logits = torch.randn(2, 5)
    terminated = torch.tensor([True, False])

    for values in (C51(-2, 2, 5), HLGauss(-2, 2, 5)):
        target = values.bootstrapped(torch.tensor([1.0, 1.0]), logits, terminated, torch.full((2,), 0.9))
        torch.testing.assert_close(target[0], values.encoded(torch.tensor(1.0)))
        assert not torch.allclose(target[1], target[0])
    assert C51(-2, 2, 5).encoded(torch.tensor(1.0)).tolist() == [0, 0, 0, 1, 0]


def test_a_number_is_split_between_two_atoms_and_keeps_its_value() -> None:
    values = C51(-10, 10, 51)
    numbers = torch.linspace(-10, 10, 333, dtype=torch.float64)

    probabilities = values.encoded(numbers)

    assert int((probabilities > 1e-12).sum(-1).max()) <= 2
    torch.testing.assert_close((probabilities * values.support(numbers)).sum(-1), numbers)


def test_a_histogram_has_the_integrals_of_a_gaussian() -> None:
    values = HLGauss(-4, 4, 8)  # bins of width 1
    number, sigma = 0.3, 0.75
    normal = torch.distributions.Normal(torch.tensor(number, dtype=torch.float64), sigma)
    edges = torch.arange(-4, 5, dtype=torch.float64)
    expected = normal.cdf(edges).diff() / (normal.cdf(edges[-1]) - normal.cdf(edges[0]))

    torch.testing.assert_close(values.encoded(torch.tensor(number, dtype=torch.float64)), expected)


def test_the_mean_of_a_histogram_is_its_target_inside_of_the_support() -> None:
    values = HLGauss(-10, 10, 51)
    inside = torch.linspace(-8.5, 8.5, 101)  # more than four sigma from the ends

    mean = values.mean(values.encoded(inside).log())

    torch.testing.assert_close(mean, inside, atol=2e-3, rtol=0)
    # At the end of the support, half of the Gaussian is cut off.
    assert values.mean(values.encoded(torch.tensor([10.0])).log()).item() == pytest.approx(
        10 - math.sqrt(2 / math.pi) * 0.75 * values.width, abs=0.05
    )


@pytest.mark.parametrize("values", [C51(-2, 2, 9), HLGauss(-2, 2, 9)])
def test_numbers_beyond_the_support_are_clipped_and_counted(values: Any) -> None:
    numbers = torch.tensor([-1e6, -2.0, 0.0, 2.0, 2.5])

    probabilities = values.encoded(numbers)

    assert probabilities.isfinite().all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5))
    torch.testing.assert_close(probabilities[0], probabilities[1])
    torch.testing.assert_close(probabilities[3], probabilities[4])
    assert values.metrics(numbers)["loss/support_clipped"].tolist() == [1, 0, 0, 0, 1]


@pytest.mark.parametrize("values", [C51(-2, 2, 9), HLGauss(-2, 2, 9)])
def test_the_loss_is_the_cross_entropy_and_least_at_the_target(values: Any) -> None:
    target = values.encoded(torch.tensor([0.3, -1.2]))
    logits = torch.randn(2, 9, requires_grad=True)

    losses = values.losses(logits, target)

    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(values.surprise(losses, torch.zeros(2)), losses)
    # The gradient of the cross-entropy: what is predicted, less what is wanted.
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient, logits.softmax(-1) - target)


def test_regression_by_hand() -> None:
    outputs, target = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([1.5, 0.0])

    huber, mse = Scalar("huber").losses(outputs, target), Scalar("mse").losses(outputs, target)

    assert huber.tolist() == [0.125, 2.5]
    assert mse.tolist() == [0.25, 9.0]
    assert torch.autograd.grad(huber.sum(), outputs)[0].tolist() == [-0.5, 1.0]
    td_error = target - outputs.detach()
    assert Scalar().surprise(huber, td_error).tolist() == [0.5, 3.0]
    assert Scalar().metrics(target) == {}


@pytest.mark.parametrize("values", [Scalar(), C51(), HLGauss()])
def test_losses_refuse_to_broadcast(values: Any) -> None:
    shape = (4,) if values.size == 1 else (4, values.size)

    with pytest.raises(ValueError, match="expected one shape"):
        values.losses(torch.zeros(shape), torch.zeros(1, *shape))


@pytest.mark.parametrize("kind", [C51, HLGauss])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"v_min": 3.0, "v_max": 3.0}, "v_min is 3 and v_max is 3; expected v_min below v_max"),
        ({"v_max": math.inf}, "v_max is inf"),
        ({"v_min": math.nan}, "v_min is nan"),
        ({"atoms": 1}, "atoms is 1; expected a whole number of at least 2"),
    ],
)
def test_a_support_that_is_none_is_refused(kind: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        kind(**options)


def test_losses_are_known_by_their_names() -> None:
    assert value_distribution("mse", -1, 1, 3) == Scalar("mse")
    assert value_distribution("c51", -1, 1, 3) == C51(-1, 1, 3)
    assert value_distribution("hl_gauss", -1, 1, 3) == HLGauss(-1, 1, 3, sigma_ratio=0.75)
    with pytest.raises(UserError, match=r"loss is 'hl_gaus'; expected one of .*; did you mean 'hl_gauss'"):
        value_distribution("hl_gaus", -1, 1, 3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="sigma_ratio is 0; expected a number above 0"):
        HLGauss(sigma_ratio=0.0)
