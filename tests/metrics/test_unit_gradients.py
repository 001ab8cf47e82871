"""Scores of units by their gradients, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lit_gfs.metrics.unit_gradients import gradient_dormant_shares, gradient_scores, total_share


def test_the_score_is_the_mean_absolute_gradient_relative_to_the_layer() -> None:
    gradient = torch.tensor([[1.0, -3.0], [0.0, 0.0], [-4.0, 0.0], [1.0, 1.0]])
    # Means of absolute values: 2, 0, 2, 1; their mean is 1.25.
    torch.testing.assert_close(gradient_scores(gradient), torch.tensor([1.6, 0.0, 1.6, 0.8]))
    torch.testing.assert_close(gradient_scores(1e-6 * gradient), gradient_scores(gradient))


def test_the_unit_of_a_convolution_is_an_output_channel() -> None:
    gradient = torch.zeros(2, 3, 2, 2)
    gradient[0] = 4.0
    assert gradient_scores(gradient).tolist() == [2.0, 0.0]


def test_without_a_gradient_all_scores_are_0_and_without_a_finite_one_unknown() -> None:
    assert gradient_scores(torch.zeros(3, 2)).tolist() == [0, 0, 0]
    gradient = torch.ones(3, 2)
    gradient[1, 0] = math.inf
    assert gradient_scores(gradient).isnan().all()


def test_shares_count_units_up_to_the_threshold() -> None:
    # Scores of the first layer: 0, 4/3 * 0.25, 4/3 * 1.25, 2.
    weight = torch.tensor([[0.0], [0.25], [1.25], [1.5]])
    gradients = {
        "first": [weight, torch.zeros(4)],  # biases do not count
        "norm": [torch.ones(5), torch.ones(5)],
        "unused": [None],
        "second": [torch.ones(2, 3)],
    }
    shares = gradient_dormant_shares(gradients, tau=0.34)
    assert shares[[0, 3]].tolist() == [0.5, 0.0]
    assert shares[[1, 2]].isnan().all()
    assert total_share(shares.tolist(), [4, 0, 7, 2]) == pytest.approx(2 / 6)
    assert math.isnan(total_share([math.nan], [3]))
    assert gradient_dormant_shares({"unused": [None]}, 0.1).isnan().all()
