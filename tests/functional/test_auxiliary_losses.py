"""Formulas of auxiliary losses against numbers by hand, closed forms, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_gfs.functional.auxiliary_losses import (
    epps_pulley,
    isotropy_penalty,
    mean_squared_change,
    parseval_penalty,
    squared_distance,
    unit_directions,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def integral(samples: Tensor) -> float:
    """Integrate by NumPy on a fine grid over [-3, 3], with complex numbers."""
    t = np.linspace(-3, 3, 20_001)
    empirical = np.exp(1j * np.outer(t, samples.numpy())).mean(1)
    integrand = np.abs(empirical - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
    return float(len(samples) * np.trapezoid(integrand, t))


@pytest.mark.parametrize("samples", [normal(40), 0.1 * normal(40), 3 + normal(7), torch.zeros(5).double()])
def test_the_statistic_is_the_integral(samples: Tensor) -> None:
    assert float(epps_pulley(samples.unsqueeze(1), 2_001)) == pytest.approx(integral(samples), rel=1e-5)
    # The 17 points of a run are close to that.
    assert float(epps_pulley(samples.unsqueeze(1))) == pytest.approx(integral(samples), rel=0.01)


def test_the_statistic_of_features_that_are_all_0() -> None:
    # phi_n is 1: with Phi the normal distribution function, over [-3, 3],
    # n (sqrt(2 pi) [2 Phi(3) - 1] - 2 sqrt(pi) [2 Phi(3 sqrt 2) - 1] + sqrt(2 pi / 3) [2 Phi(3 sqrt 3) - 1]).
    expected = (
        math.sqrt(2 * math.pi) * math.erf(3 / math.sqrt(2))
        - 2 * math.sqrt(math.pi) * math.erf(3)
        + math.sqrt(2 * math.pi / 3) * math.erf(3 * math.sqrt(1.5))
    )
    assert float(epps_pulley(torch.zeros(10, 1).double(), 4_001)) == pytest.approx(10 * expected, rel=1e-6)


def test_normal_samples_have_the_smallest_statistic() -> None:
    samples = normal(2_000, 1)
    # Its mean for normal samples does not depend on their number: E|phi_n - phi|^2 = (1 - exp(-t^2)) / n.
    assert float(epps_pulley(normal(2_000, 200)).mean()) == pytest.approx(
        math.sqrt(2 * math.pi) * math.erf(3 / math.sqrt(2))
        - math.sqrt(2 * math.pi / 3) * math.erf(3 * math.sqrt(1.5)),
        rel=0.15,
    )
    for other in (0.5 * samples, 2 * samples, samples + 0.5, samples.sign(), samples.relu()):
        assert float(epps_pulley(other)) > 20 * float(epps_pulley(samples))


def test_isotropy_is_the_mean_over_directions() -> None:
    features = normal(4, 3, 5)
    directions = unit_directions(normal(5, 7, seed=1))

    expected = [integral((features.view(12, 5) @ direction).flatten()) for direction in directions.T]

    assert float(isotropy_penalty(features, directions)) == pytest.approx(sum(expected) / 7, rel=0.01)


def test_isotropy_sees_a_correlation_that_no_axis_shows() -> None:
    column = normal(4_000, 1)
    correlated = torch.cat([column, column], 1)
    diagonal = torch.tensor([[1.0], [1.0]], dtype=torch.float64) / math.sqrt(2)

    assert float(isotropy_penalty(correlated, torch.eye(2).double())) < 1
    assert float(isotropy_penalty(correlated, diagonal)) > 20


def test_directions_have_length_1() -> None:
    torch.testing.assert_close(
        unit_directions(torch.tensor([[3.0, 0.0], [4.0, 2.0]])), torch.tensor([[0.6, 0], [0.8, 1]])
    )


def test_the_change_is_a_mean_square_and_has_no_gradient_to_what_was_before() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
    before = torch.tensor([[1.0, 0.0], [2.0, 5.0]], requires_grad=True)

    change = mean_squared_change(values, before)
    change.backward()

    assert float(change.detach()) == pytest.approx((4 + 1) / 4)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, 1.0], [0.5, 0.0]]))
    assert before.grad is None
    with pytest.raises(ValueError, match="expected one shape"):
        mean_squared_change(values, before[0])


def test_the_distance_is_a_sum_of_squares() -> None:
    parameters = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)]
    origin = [torch.tensor([0.0, 4.0]), torch.tensor([[2.5]])]

    distance = squared_distance(parameters, origin)
    distance.backward()

    assert float(distance.detach()) == pytest.approx(1 + 4 + 0.25)
    gradients = [parameter.grad for parameter in parameters]
    torch.testing.assert_close(gradients, [torch.tensor([2.0, -4.0]), torch.tensor([[1.0]])])


def orthogonal(rows: int, columns: int) -> Tensor:
    return torch.nn.init.orthogonal_(torch.empty(rows, columns, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(6, 6), (3, 8), (8, 3), (4, 2, 3, 3), (32, 2, 3, 3)])
def test_orthogonal_matrices_of_the_scale_have_no_penalty(shape: tuple[int, ...]) -> None:
    weight = math.sqrt(2) * orthogonal(shape[0], math.prod(shape[1:])).view(shape)
    assert float(parseval_penalty([weight])) == pytest.approx(0, abs=1e-18)


def test_the_penalty_of_a_scaled_orthogonal_matrix() -> None:
    # n singular values c: (64 / n)^2 n (c^2 - s)^2.
    weights = [3 * orthogonal(8, 8), 0.5 * orthogonal(16, 16)]
    expected = 8**2 * 8 * (9 - 2) ** 2 + 4**2 * 16 * (0.25 - 2) ** 2
    assert float(parseval_penalty(weights)) == pytest.approx(expected)
    assert float(parseval_penalty(weights[:1], scale=9)) == pytest.approx(0, abs=1e-9)


def test_a_tall_matrix_has_the_gradient_of_the_published_form() -> None:
    weight = normal(64, 5).requires_grad_()
    published = (weight @ weight.T - 2 * torch.eye(64)).square().sum()

    (expected,) = torch.autograd.grad(published, weight)
    (gradient,) = torch.autograd.grad(parseval_penalty([weight]), weight)

    torch.testing.assert_close(gradient, expected)
    assert float(published - parseval_penalty([weight])) == pytest.approx((64 - 5) * 4)


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "isotropy": lambda x: isotropy_penalty(x, unit_directions(normal(4, 3, seed=2))),
    "change": lambda x: mean_squared_change(x, normal(6, 4, seed=3)),
    "distance": lambda x: squared_distance([x], [normal(6, 4, seed=3)]),
    "parseval": lambda x: parseval_penalty([x, x.T]),
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_gradients_are_those_of_finite_differences(formula: str) -> None:
    assert torch.autograd.gradcheck(FORMULAS[formula], (normal(6, 4).requires_grad_(),))


@pytest.mark.parametrize("formula", FORMULAS)
def test_autocast_does_not_round_them(formula: str) -> None:
    values = normal(6, 4).float()
    directions = {"isotropy": lambda x: isotropy_penalty(x, unit_directions(normal(4, 3, seed=2)).float())}
    call = directions.get(formula, FORMULAS[formula])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = call(values)
    torch.testing.assert_close(rounded, call(values))
