from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from lit_gfs.metrics.curvature import (
    hessian_vector_product,
    hutchinson_trace,
    largest_eigenvalue,
    loss_gradients,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def symmetric(size, seed=0):
    matrix = torch.randn(size, size, generator=seeded(seed), dtype=torch.float64)
    return matrix + matrix.T


def quadratic(matrix):
    """The gradients and parameters of w.Aw / 2 + sum(w), with w in three parts."""
    sizes = [2, 3, len(matrix) - 5]
    parts = [torch.randn(size, generator=seeded(9), dtype=matrix.dtype) for size in sizes]
    parameters = [part.requires_grad_() for part in parts]
    whole = torch.cat(parameters)
    return loss_gradients(whole @ matrix @ whole / 2 + whole.sum(), parameters), parameters


def test_a_product_is_the_matrix_times_the_vector_however_often():
    matrix = symmetric(8)
    gradients, parameters = quadratic(matrix)
    for seed in range(3):
        vector = torch.randn(8, generator=seeded(seed), dtype=torch.float64)
        product = hessian_vector_product(gradients, parameters, vector.split([2, 3, 3]))
        assert [part.shape for part in product] == [part.shape for part in parameters]
        torch.testing.assert_close(torch.cat(product), matrix @ vector)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_trace_of_a_diagonal_hessian_is_exact(samples):
    diagonal = torch.tensor([1.0, -2.0, 3.0, 0.0, 5.0, 0.25, 7.0])
    estimate = hutchinson_trace(*quadratic(torch.diag(diagonal)), samples, seeded())
    assert estimate.trace.item() == diagonal.sum().item()
    assert estimate.error.item() == pytest.approx(0.0 if samples > 1 else math.nan, nan_ok=True)


def test_the_trace_of_a_dense_hessian_is_as_wrong_as_it_says():
    matrix = symmetric(12, seed=1)
    off_diagonal = matrix - torch.diag(matrix.diag())
    samples, repeats = 50, 60
    graph = quadratic(matrix)
    estimates = [hutchinson_trace(*graph, samples, seeded(seed)) for seed in range(repeats)]
    traces, errors = (torch.stack(column) for column in zip(*estimates, strict=True))
    true_error = (2 * off_diagonal.square().sum() / samples).sqrt().item()
    assert errors.mean().item() == pytest.approx(true_error, rel=0.05)
    assert traces.std().item() == pytest.approx(true_error, rel=0.3)
    assert traces.mean().item() == pytest.approx(matrix.trace().item(), abs=4 * true_error / repeats**0.5)


@pytest.mark.parametrize("shift", [4.0, -4.0, 0.0])
def test_the_largest_eigenvalue_keeps_its_sign(shift):
    matrix = symmetric(9, seed=2) + shift * torch.eye(9)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    largest = eigenvalues[eigenvalues.abs().argmax()].item()
    estimate = largest_eigenvalue(*quadratic(matrix), 400, seeded())
    assert estimate.eigenvalue.item() == pytest.approx(largest, rel=1e-6)
    assert estimate.residual.item() < 1e-2
    if shift:
        assert math.copysign(1, largest) == math.copysign(1, shift)


@pytest.mark.parametrize("iterations", [1, 2, 5, 20])
def test_the_residual_bounds_the_distance_to_an_eigenvalue(iterations):
    matrix = symmetric(9, seed=3)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    for seed in range(20):
        estimate = largest_eigenvalue(*quadratic(matrix), iterations, seeded(seed))
        distance = (eigenvalues - estimate.eigenvalue).abs().min()
        assert distance <= estimate.residual + 1e-12
        assert estimate.residual > 1e-9  # so few iterations have not converged, and it says so


def test_a_pair_of_opposite_eigenvalues_shows_in_the_residual():
    matrix = torch.diag(torch.tensor([2.0, -2.0, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64))
    for seed in range(5):
        estimate = largest_eigenvalue(*quadratic(matrix), 50, seeded(seed))
        # The vector ends in their plane: (cos t, sin t) has the quotient 2 cos 2t and the residual 2 sin 2t.
        quotient, residual = estimate.eigenvalue.item(), estimate.residual.item()
        assert math.hypot(quotient, residual) == pytest.approx(2)
        assert residual > 0.1


def test_power_iteration_by_hand():
    # From (a, b): after k products the vector is (3^k a, b), normalized.
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    graph = quadratic(matrix)
    generator = seeded(5)
    start = torch.cat([torch.randn(size, generator=generator, dtype=torch.float64) for size in (2, 3, 1)])
    vector = start
    for _ in range(2):
        vector = matrix @ vector
    vector = vector / vector.norm()
    quotient = vector @ matrix @ vector
    estimate = largest_eigenvalue(*graph, 3, seeded(5))
    torch.testing.assert_close(estimate.eigenvalue, quotient)
    torch.testing.assert_close(estimate.residual, (matrix @ vector - quotient * vector).norm())


class Net(nn.Module):
    """A small network with a convolution, a parameter without use, and one that acts linearly."""

    def __init__(self, activation):
        super().__init__()
        self.convolution = nn.Conv1d(1, 2, 3)
        self.hidden = nn.Linear(6, 4)
        self.unused = nn.Parameter(torch.ones(3))
        self.output = nn.Linear(4, 2)
        self.offset = nn.Parameter(torch.ones(()))
        self.activation = activation

    def forward(self, x, y):
        features = self.activation(self.convolution(x.unsqueeze(1))).flatten(1)
        logits = self.output(self.activation(self.hidden(features)))
        return nn.functional.cross_entropy(logits, y) + 2 * self.offset


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()])
def test_a_network_against_its_whole_hessian(activation):
    torch.manual_seed(0)
    net = Net(activation).double()
    batch = torch.randn(16, 5, dtype=torch.float64), torch.randint(2, (16,))
    parameters = list(net.parameters())

    def split(vector):
        parts = vector.split([parameter.numel() for parameter in parameters])
        return [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]

    def loss(vector):
        names = [name for name, _ in net.named_parameters()]
        return functional_call(net, dict(zip(names, split(vector), strict=True)), batch)

    whole = parameters_to_vector(parameters).detach()
    full = hessian(loss, whole)
    eigenvalues = torch.linalg.eigvalsh(full)

    gradients = loss_gradients(net(*batch), parameters)
    rows = [
        parameters_to_vector(hessian_vector_product(gradients, parameters, split(unit)))
        for unit in torch.eye(len(whole), dtype=torch.float64)
    ]
    torch.testing.assert_close(torch.stack(rows), full)
    trace = hutchinson_trace(gradients, parameters, 400, seeded())
    variance = 2 * (full - torch.diag(full.diag())).square().sum().item()
    assert trace.error.item() == pytest.approx((variance / 400) ** 0.5, rel=0.2)
    assert trace.trace.item() == pytest.approx(full.trace().item(), abs=3 * trace.error.item())
    estimate = largest_eigenvalue(gradients, parameters, 200, seeded())
    assert estimate.eigenvalue.item() == pytest.approx(eigenvalues[eigenvalues.abs().argmax()].item())
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("loss", [lambda a, b: a.sum() * 3, lambda a, b: (a.sum() + b.sum()) * 2])
def test_a_linear_loss_has_no_curvature(loss):
    parameters = [torch.ones(3, requires_grad=True), torch.ones(2, 2, requires_grad=True)]
    gradients = loss_gradients(loss(*parameters), parameters)
    assert all(not part.any() for part in hessian_vector_product(gradients, parameters, parameters))
    assert [value.item() for value in hutchinson_trace(gradients, parameters, 3, seeded())] == [0, 0]
    assert [value.item() for value in largest_eigenvalue(gradients, parameters, 3, seeded())] == [0, 0]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_curvature_of_collapsed_and_diverged_networks_is_in_range(scale):
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 50.0])) * scale
    estimate = largest_eigenvalue(*quadratic(matrix), 20, seeded())
    assert estimate.eigenvalue.item() == pytest.approx(50 * scale, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(value):
    matrix = torch.eye(6)
    matrix[0, 0] = value
    gradients, parameters = quadratic(matrix)
    assert not hutchinson_trace(gradients, parameters, 3, seeded()).trace.isfinite()
    assert not largest_eigenvalue(gradients, parameters, 3, seeded()).eigenvalue.isfinite()


def test_the_generator_decides_alone():
    graph = quadratic(symmetric(7))
    before = torch.get_rng_state()
    first = (*hutchinson_trace(*graph, 4, seeded(1)), *largest_eigenvalue(*graph, 4, seeded(1)))
    again = (*hutchinson_trace(*graph, 4, seeded(1)), *largest_eigenvalue(*graph, 4, seeded(1)))
    other = (*hutchinson_trace(*graph, 4, seeded(2)), *largest_eigenvalue(*graph, 4, seeded(2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


@pytest.mark.parametrize(
    "loss", [lambda x: Square.apply(x).sum(), lambda x: (3 * Square.apply(x).exp()).sum(), Square.apply]
)
def test_a_function_without_second_derivative_is_refused(loss):
    x = torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError, match="SquareBackward is marked as once_differentiable"):
        loss_gradients(loss(x), [x])
