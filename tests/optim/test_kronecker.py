"""The functions of stacks, against dense matrices built one by one."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from pytorch_optimizer.optimizer.psgd import initialize_q_expressions
from pytorch_optimizer.optimizer.utils.psgd import norm_lower_bound
from torch import Tensor

from lit_gfs.optim import kronecker

COUNT = 3
SHAPES = [(1,), (4,), (3, 4), (4, 1), (2, 3, 4), (3, 2, 2, 4)]


def random_factors(shape: tuple[int, ...], diagonal: set[int]) -> list[Tensor]:
    factors = []
    for dim, size in enumerate(shape):
        if dim in diagonal:
            factors.append(torch.rand(COUNT, size, dtype=torch.float64) + 0.5)
        else:
            triangle = 0.3 * torch.randn(COUNT, size, size, dtype=torch.float64).triu()
            factors.append(triangle + torch.eye(size, dtype=torch.float64))
    return factors


def dense(factors: list[Tensor], row: int) -> Tensor:
    """The Kronecker product of one tensor's factors, as a matrix."""
    matrices = [factor[row] if factor.dim() == 3 else factor[row].diag() for factor in factors]
    return functools.reduce(torch.kron, matrices)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("diagonal", [set(), {0}, {1}, {0, 1, 2, 3}])
def test_stacks_are_multiplied_as_their_tensors_would_be(shape: tuple[int, ...], diagonal: set[int]) -> None:
    torch.manual_seed(0)
    factors = random_factors(shape, diagonal)
    stack = torch.randn(COUNT, *shape, dtype=torch.float64)

    product, quotient = kronecker.multiply(factors, stack), kronecker.divide(factors, stack)
    preconditioned = kronecker.multiply(kronecker.squared(factors), stack)

    for row in range(COUNT):
        matrix, vector = dense(factors, row), stack[row].flatten()
        torch.testing.assert_close(product[row].flatten(), matrix @ vector)
        torch.testing.assert_close(quotient[row].flatten(), torch.linalg.inv(matrix).T @ vector)
        torch.testing.assert_close(preconditioned[row].flatten(), matrix.T @ matrix @ vector)


def test_balancing_evens_out_the_largest_entries_and_keeps_the_product() -> None:
    torch.manual_seed(0)
    factors = random_factors((3, 2, 4), {1})
    factors[0] *= torch.tensor([1.0, 10.0, 100.0]).view(-1, 1, 1)
    before = [dense(factors, row) for row in range(COUNT)]

    kronecker.balance_(factors)

    largest = torch.stack([factor.flatten(1).abs().amax(1) for factor in factors])
    torch.testing.assert_close(largest, largest[:1].expand(3, -1))
    for row in range(COUNT):
        torch.testing.assert_close(dense(factors, row), before[row])


def test_fitting_whitens_gradients() -> None:
    """At the optimum, P is the inverse of the root of the gradients' second moment."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([[0.1, 1.0, 5.0], [1.0, 1.0, 1.0], [30.0, 2.0, 0.5]])
    factors = [torch.ones(COUNT, 1), torch.eye(3).repeat(COUNT, 1, 1)]
    for step in range(1_200):
        noise, probes = torch.randn(2, COUNT, 1, 3, generator=generator)
        kronecker.fit_(factors, probes, noise * scales[:, None], rate=0.1 if step < 500 else 0.01)

    products = kronecker.squared(factors)
    for row in range(COUNT):
        expected = (1 / scales[row]).diag()
        found = dense(products, row)
        assert torch.linalg.norm(found - expected) < 0.15 * torch.linalg.norm(expected)


def test_the_bound_is_below_the_spectral_norm_and_close_to_it() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(8, 12, 15, generator=generator) * 10.0 ** torch.arange(-12, 12, 3).view(-1, 1, 1)
    matrices = columns @ columns.mT
    matrices[3] = 0

    bounds = kronecker.spectral_norm_bound(matrices.clone())

    norms = torch.linalg.matrix_norm(matrices.double(), 2)
    assert bounds[3] == 0
    assert (bounds <= norms * (1 + 1e-5)).all()
    assert (bounds >= 0.8 * norms).all()
    expected = torch.stack([norm_lower_bound(matrix.clone()) for matrix in matrices])
    torch.testing.assert_close(bounds, expected)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 4), (1, 6), (7, 3), (3, 7), (5, 2, 5), (2, 2, 2, 2)])
@pytest.mark.parametrize("mode", [None, "one_diag", "smart_one_diag", "all_diag"])
@pytest.mark.parametrize(("max_size", "min_ndim"), [(8192, 2), (5, 1), (5, 3)])
def test_factors_begin_as_in_the_library(
    shape: tuple[int, ...], mode: kronecker.MemorySaveMode | None, max_size: int, min_ndim: int
) -> None:
    parameter = torch.zeros(shape)
    factors = kronecker.identity_factors(parameter, 4.0, max_size, min_ndim, mode, torch.bfloat16)
    expected, _ = initialize_q_expressions(parameter, 4.0, max_size, min_ndim, mode, torch.bfloat16)

    assert len(factors) == len(expected) == max(len(shape), 1)
    for ours, theirs in zip(factors, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, theirs)
    assert math.prod(factor.flatten()[0].item() for factor in factors) == pytest.approx(4, rel=0.02)
