"""Norms, distances and spectra of weights that are known beforehand."""

from __future__ import annotations

import math

import pytest
import torch

from lit_gfs.metrics.weight_statistics import weight_statistics


def test_statistics_by_hand() -> None:
    layers = {
        "a": [torch.diag(torch.tensor([4.0, 3.0])), torch.zeros(2)],
        "norm": [torch.ones(4)],
        "zero": [torch.zeros(2, 2)],
    }
    initial = {
        "a": [torch.diag(torch.tensor([4.0, 0.0])), torch.tensor([0.0, 3.0])],
        "norm": [torch.ones(4)],
        "zero": [torch.zeros(2, 2)],
    }
    found = {name: values.tolist() for name, values in weight_statistics(layers, initial).items()}
    assert found["norm"] == [5.0, 2.0, 0.0]
    assert found["distance"][:2] == pytest.approx([math.sqrt(18) / 5, 0.0])
    assert math.isnan(found["distance"][2])
    assert found["largest_singular_value"][0] == 4.0
    assert found["stable_rank"][0] == 25 / 16
    assert all(math.isnan(found[name][1]) for name in ("largest_singular_value", "stable_rank"))
    assert math.isnan(found["stable_rank"][2])


def test_a_kernel_counts_as_a_matrix_of_its_outputs() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(6, 2, 3, 3)
    found = weight_statistics({"a": [kernel]}, {"a": [kernel]})
    values = torch.linalg.svdvals(kernel.flatten(1))
    torch.testing.assert_close(found["largest_singular_value"][0], values[0])
    torch.testing.assert_close(found["stable_rank"][0], values.square().sum() / values[0].square())


def test_half_precision_is_measured_in_full() -> None:
    weight = torch.ones(2, 2, dtype=torch.bfloat16)
    assert weight_statistics({"a": [weight]}, {"a": [weight]})["stable_rank"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_matrix_with_numbers_that_are_not_finite_has_no_statistics(value: float) -> None:
    broken, whole = torch.eye(3), torch.eye(3)
    broken[1, 2] = value
    found = weight_statistics({"a": [broken], "b": [whole]}, {"a": [whole], "b": [whole]})
    assert found["largest_singular_value"].isnan().tolist() == [True, False]
    assert found["stable_rank"].isnan().tolist() == [True, False]
