from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lit_gfs.functional.spectrum import largest_singular_value, lifted_spectrum, polar_factor


def exact(matrices: Tensor) -> Tensor:
    """Return the polar factors by a singular value decomposition; zero singular values stay zero."""
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    return left * (values > 1e-10).to(values)[..., None, :] @ right


def with_singular_values(values: list[float], rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = len(values)
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator, dtype=torch.float64)).Q
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.mT


@pytest.mark.parametrize(
    "shape", [(8, 8), (3, 8, 8), (2, 5, 9), (9, 5), (2, 3, 4, 32), (32, 4), (1, 7), (7, 1)]
)
def test_the_polar_factor_is_that_of_the_decomposition(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    torch.testing.assert_close(polar_factor(matrices, steps=9), exact(matrices), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("steps", "error"), [(5, 0.13), (6, 0.002)])
@pytest.mark.parametrize("columns", [6, 40])  # by products, and by Gram matrices
def test_singular_values_over_three_orders_of_magnitude_meet_at_1(steps, error, columns) -> None:
    values = [1.0, 0.5, 0.1, 0.01, 0.002, 0.0012]

    result = torch.linalg.svdvals(polar_factor(with_singular_values(values, 6, columns), steps))

    assert (result - 1).abs().max() < error


def test_singular_vectors_stay() -> None:
    matrix = with_singular_values([3.0, 2.0, 1.0], 5, 4)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)

    rotated = left[:, :3].mT @ polar_factor(matrix) @ right[:3].mT

    assert (rotated - torch.diag(rotated.diagonal())).abs().max() < 1e-9


@pytest.mark.parametrize("columns", [6, 40])
def test_a_deficient_rank_stays(columns: int) -> None:
    matrix = with_singular_values([1.0, 0.3], 6, columns)

    values = torch.linalg.svdvals(polar_factor(matrix, steps=7))

    assert values[:2].tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert values[2:].max() < 1e-9


@pytest.mark.parametrize("scale", [1e-17, 1e-6, 1e6, 1e15])
def test_the_scale_does_not_matter(scale: float) -> None:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))

    torch.testing.assert_close(polar_factor(scale * matrix), polar_factor(matrix), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(6, 6), (6, 20), (20, 6)])
def test_overwritten_matrices_have_the_same_factor(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape)
    expected = polar_factor(matrices)
    before = matrices.clone()

    assert torch.equal(polar_factor(matrices), expected)
    assert torch.equal(matrices, before)
    assert torch.equal(polar_factor(matrices, overwrite=True), expected)
    assert not torch.equal(matrices, before)


@pytest.mark.parametrize("factor_of", [polar_factor, partial(lifted_spectrum, lift=3.5)])
def test_many_wide_matrices_are_overwritten_in_parts(factor_of: Callable[..., Tensor]) -> None:
    # More elements than one part holds, and a last part that is smaller than the others.
    matrices = torch.randn(19, 16, 1024, generator=torch.Generator().manual_seed(4))
    expected = factor_of(matrices)

    torch.testing.assert_close(factor_of(matrices, overwrite=True), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 8), (8, 8), (48, 64), (64, 64), (64, 48)])
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_half_precision_leaves_no_large_singular_value(
    shape: tuple[int, int], noise: float, kind: torch.dtype
) -> None:
    rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((200, rows, 1), (200, 1, columns), (200, rows, columns))
    left, right, other = (torch.randn(size, generator=generator) for size in sizes)

    factors = polar_factor((left @ right + noise * other).to(kind), dtype=torch.bfloat16)

    assert torch.linalg.matrix_norm(factors.float(), 2).max() < 1.2


@pytest.mark.parametrize("scale", [1e-22, 1e-30, 1e-40])
@pytest.mark.parametrize("columns", [6, 40])
def test_a_vanishing_matrix_stays_bounded(scale: float, columns: int) -> None:
    matrix = scale * torch.randn(6, columns, generator=torch.Generator().manual_seed(5))

    assert torch.linalg.svdvals(polar_factor(matrix)).max() < 1.2


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 12)])
def test_zero_stays_zero(shape: tuple[int, ...]) -> None:
    zeros = torch.zeros(shape)

    assert torch.equal(polar_factor(zeros), zeros)
    assert torch.equal(largest_singular_value(zeros), torch.zeros(shape[:-2]))


def test_bfloat16_is_exact_to_a_tenth() -> None:
    matrix = with_singular_values([1.0, 0.7, 0.5, 0.3, 0.2, 0.1], 6, 40).float()

    result = polar_factor(matrix, dtype=torch.bfloat16)

    assert result.dtype == torch.float32
    assert not torch.equal(result, polar_factor(matrix))
    assert (result - polar_factor(matrix)).norm() / polar_factor(matrix).norm() < 0.1


@pytest.mark.parametrize("lift", [1.0, 1.5, 1.875, 3.5, 20.0])
@pytest.mark.parametrize("columns", [6, 40])  # by products, and by Gram matrices
def test_small_singular_values_are_lifted_and_none_exceeds_1(lift: float, columns: int) -> None:
    values = [1.0, 0.1, 1e-4, 1e-5]
    matrix = with_singular_values(values, 6, columns)

    result = torch.linalg.svdvals(lifted_spectrum(matrix, lift))

    norm = matrix.norm()
    assert (result[2:4] * norm).tolist() == pytest.approx([lift * 1e-4, lift * 1e-5], rel=1e-3)
    assert result[0] < 1 + 1e-9
    assert result[4:].max() < 1e-9


@pytest.mark.parametrize("columns", [6, 40])
def test_lifted_singular_values_meet_at_1(columns: int) -> None:
    result = torch.linalg.svdvals(lifted_spectrum(with_singular_values([1.0, 0.1], 6, columns), 20.0))

    assert result[:2].min() > 0.95


@pytest.mark.parametrize("lift", [1.3, 3.5, 9.0])
def test_lifted_singular_values_keep_their_order_and_directions(lift: float) -> None:
    matrix = with_singular_values([0.8, 0.4, 0.3, 0.2, 0.1, 0.05], 6, 6)
    left, _, right = torch.linalg.svd(matrix)

    rotated = left.mT @ lifted_spectrum(matrix, lift) @ right.mT

    assert (rotated - torch.diag(rotated.diagonal())).abs().max() < 1e-9
    assert (rotated.diagonal().diff() < 0).all()


def test_a_large_lift_comes_close_to_the_polar_factor() -> None:
    matrix = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    torch.testing.assert_close(lifted_spectrum(matrix, 1e5), exact(matrix), atol=1e-6, rtol=0)


def test_a_lift_of_1_only_divides_by_the_norm() -> None:
    matrix = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(lifted_spectrum(matrix, 1.0), matrix / matrix.norm())
    assert torch.equal(lifted_spectrum(torch.zeros(3, 3), 3.5), torch.zeros(3, 3))


@pytest.mark.parametrize("shape", [(8, 8), (3, 5, 9), (9, 5)])
def test_the_spectral_norm_is_estimated_from_below(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    largest = torch.linalg.svdvals(matrices)[..., 0]

    assert (largest_singular_value(matrices) <= largest + 1e-12).all()
    assert (largest_singular_value(matrices) >= 0.8 * largest).all()
    torch.testing.assert_close(largest_singular_value(matrices, steps=200), largest)


def test_the_spectral_norm_of_one_row_is_exact() -> None:
    row = torch.tensor([[3.0, 4.0]])

    assert float(largest_singular_value(row)) == pytest.approx(5.0)
    assert float(largest_singular_value(row.mT)) == pytest.approx(5.0)


@pytest.mark.parametrize("scale", [1e-15, 1e10])
def test_the_scale_does_not_matter_to_the_largest_singular_value(scale: float) -> None:
    matrix = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))

    found = largest_singular_value(scale * matrix)

    torch.testing.assert_close(found, scale * largest_singular_value(matrix), rtol=1e-4, atol=0)


def test_the_largest_singular_value_is_at_least_the_largest_norm_of_a_row() -> None:
    matrix = torch.diag(torch.tensor([1.0, 3.0, 2.0]))

    assert largest_singular_value(matrix).item() == pytest.approx(3.0)


def test_three_steps_are_the_default() -> None:
    matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))

    assert torch.equal(largest_singular_value(matrix), largest_singular_value(matrix, steps=3))
    assert not torch.equal(largest_singular_value(matrix), largest_singular_value(matrix, steps=2))
