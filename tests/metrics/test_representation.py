from __future__ import annotations

import math

import pytest
import torch

from lit_gfs.metrics.representation import (
    dormancy_scores,
    dormant_share,
    effective_rank,
    feature_norm,
    greedy_churn,
    mean_action_churn,
    singular_values,
    srank,
)

NAN, INF = math.nan, math.inf


def orthogonal(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


def matrix_of(values: list[float], rows: int = 40, columns: int = 30) -> torch.Tensor:
    """A dense matrix with the given singular values."""
    diagonal = torch.zeros(rows, columns, dtype=torch.float64)
    diagonal[range(len(values)), range(len(values))] = torch.tensor(values, dtype=torch.float64)
    return orthogonal(rows, 1) @ diagonal @ orthogonal(columns, 2)


def test_scores_by_hand() -> None:
    # Mean absolute activations 2, 1, 0 and 1: of mean 1. Signs do not matter.
    activations = torch.tensor([[1.0, -1.0, 0.0, 2.0], [-3.0, 1.0, 0.0, 0.0]])
    assert dormancy_scores(activations).tolist() == [2.0, 1.0, 0.0, 1.0]


def test_a_channel_is_a_unit_of_a_convolution() -> None:
    images = torch.zeros(2, 3, 2, 2)
    images[0, 0, 1, 1] = 8.0  # a single position of a single image: mean 1
    images[:, 1] = -2.0
    assert dormancy_scores(images).tolist() == [1.0, 2.0, 0.0]
    assert dormancy_scores(images.flatten(2)).tolist() == [1.0, 2.0, 0.0]
    assert dormancy_scores(images.unsqueeze(2)).tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize(("tau", "share"), [(0.0, 0.25), (0.024, 0.25), (0.025, 0.5), (1.0, 0.75)])
def test_units_at_most_at_the_threshold_are_dormant(tau: float, share: float) -> None:
    scores = torch.tensor([0.0, 0.025, 1.0, 2.975])
    assert dormant_share(scores, tau).item() == share


def test_the_default_threshold() -> None:
    assert dormant_share(torch.tensor([0.0249, 0.0251, 1.0, 2.95])).item() == 0.25


def test_a_layer_that_is_zero_is_dormant_however_many_its_units() -> None:
    scores = dormancy_scores(torch.zeros(5, 7))
    assert scores.tolist() == [0.0] * 7
    assert dormant_share(scores).item() == 1.0


def test_the_scale_of_a_layer_does_not_matter() -> None:
    activations = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    activations[:, 2] *= 1e-3
    for scale in (1e-30, 1.0, 1e30):
        assert dormant_share(dormancy_scores(scale * activations)).item() == pytest.approx(1 / 6)


def test_half_precision_is_averaged_in_float32() -> None:
    # A sum of 4,096 kept in bfloat16 would stop at 256.
    activations = torch.ones(4096, 2, dtype=torch.bfloat16)
    activations[:, 1] = 0.5
    assert dormancy_scores(activations).tolist() == pytest.approx([4 / 3, 2 / 3])


@pytest.mark.parametrize("bad", [NAN, INF])
def test_activations_that_are_not_finite_give_nan(bad: float) -> None:
    activations = torch.ones(3, 4)
    activations[1, 2] = bad
    assert math.isnan(dormant_share(dormancy_scores(activations)).item())


def test_singular_values_up_to_scale() -> None:
    values = [5.0, 3.0, 0.5, 1e-3]
    for scale in (1e-30, 1.0, 1e30):
        found = singular_values((scale * matrix_of(values)).float())
        assert found.shape == (30,)
        assert (found / found[0])[:4].tolist() == pytest.approx([1.0, 0.6, 0.1, 2e-4], rel=1e-2)
        assert found[4:].max() < 1e-5 * found[0]


@pytest.mark.parametrize(
    ("values", "delta", "rank"),
    [
        ([98.9, 1.1], 0.01, 2),
        ([99.1, 0.9], 0.01, 1),
        ([50.0, 30.0, 15.0, 4.5, 0.5], 0.01, 4),
        ([50.0, 30.0, 15.0, 4.5, 0.5], 0.1, 3),
        ([50.0, 30.0, 15.0, 4.5, 0.5], 0.51, 1),
        ([1.0] * 10, 0.01, 10),
        ([1.0] * 10, 0.45, 6),
        ([7.0], 0.01, 1),
        ([1.0, 0.0, 0.0], 0.01, 1),
    ],
)
def test_srank_counts_the_values_that_make_up_the_sum(values: list[float], delta: float, rank: int) -> None:
    assert srank(torch.tensor(values), delta).item() == rank
    assert srank(singular_values(matrix_of(values)), delta).item() == rank


def test_srank_of_an_identity_and_of_products() -> None:
    assert srank(singular_values(torch.eye(64))).item() == 64
    generator = torch.Generator().manual_seed(3)
    for rank in (1, 5):
        left, right = torch.randn(50, rank, generator=generator), torch.randn(rank, 20, generator=generator)
        assert srank(singular_values(left @ right), delta=1e-4).item() == rank


def test_effective_rank_is_the_number_of_equal_values() -> None:
    assert effective_rank(singular_values(torch.eye(64))).item() == pytest.approx(64)
    assert effective_rank(singular_values(matrix_of([2.0] * 5))).item() == pytest.approx(5)
    assert effective_rank(singular_values(torch.ones(8, 3))).item() == pytest.approx(1, abs=1e-4)


def test_effective_rank_by_hand() -> None:
    # Shares 3/4 and 1/4: exp(-(3/4 ln 3/4 + 1/4 ln 1/4)) = 4 / 3^(3/4).
    found = effective_rank(singular_values(torch.diag(torch.tensor([6.0, -2.0, 0.0]))))
    assert found.item() == pytest.approx(4 / 3**0.75)


def test_the_ranks_of_a_zero_matrix_are_zero() -> None:
    values = singular_values(torch.zeros(6, 4))
    assert values.tolist() == [0.0] * 4
    assert srank(values).item() == 0
    assert effective_rank(values).item() == 0


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_ranks_of_what_is_not_finite_are_nan(bad: float) -> None:
    features = torch.eye(5)
    features[2, 3] = bad
    values = singular_values(features)
    assert math.isnan(srank(values).item())
    assert math.isnan(effective_rank(values).item())


def test_ranks_of_half_precision_features() -> None:
    values = singular_values(torch.eye(8, dtype=torch.bfloat16))
    assert values.dtype == torch.float32
    assert srank(values).item() == 8


def test_feature_norm_is_the_mean_over_states() -> None:
    assert feature_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0], [-6.0, 8.0]])).item() == pytest.approx(5.0)
    assert math.isnan(feature_norm(torch.tensor([[NAN, 1.0]])).item())


def test_greedy_churn_is_the_share_of_changed_actions() -> None:
    before = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, -INF], [5.0, 4.0]])
    after = torch.tensor([[9.0, 10.0], [0.0, 0.1], [-7.0, -INF], [1.0, 1.1]])
    assert greedy_churn(before, after).item() == 0.5
    assert greedy_churn(before, before + 100).item() == 0
    after[2, 0] = NAN
    assert math.isnan(greedy_churn(before, after).item())


def test_mean_action_churn_is_the_mean_absolute_change() -> None:
    before = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    after = torch.tensor([[1.5, -1.0], [0.0, -1.5]])
    assert mean_action_churn(before, after).item() == pytest.approx((0.5 + 3.5) / 4)
