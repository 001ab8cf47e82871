from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import bootstrap, mannwhitneyu, trim_mean

from lit_gfs.metrics.intervals import (
    draw,
    estimate,
    interquartile_means,
    optimality_gaps,
    probabilities_of_improvement,
    resample,
)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_iqm_over_runs_and_tasks_by_hand() -> None:
    # rliable flattens all runs of all tasks: 8 scores, 2 off each end, 3 + 4 + 5 + 6 over 4.
    assert interquartile_means([[1, 8, 3, 4], [5, 2, 7, 6]]) == 4.5


def test_iqm_of_every_resample() -> None:
    strata = [generator().normal(size=(7, 5)), generator().normal(size=(7, 3))]

    expected = [trim_mean(np.concatenate(row), 0.25) for row in zip(*strata, strict=True)]

    np.testing.assert_allclose(interquartile_means(strata), expected)


def test_optimality_gap_by_hand() -> None:
    # Short of 1 by 0.5, 0, 0 and 1.5: what is above 1 does not make up for it.
    assert optimality_gaps([[0.5, 1.0], [3.0, -0.5]]) == 0.5
    assert optimality_gaps([[0.5, 1.0]], target=2.0) == 1.25


def test_probability_of_improvement_by_hand() -> None:
    # First task: 2 > 1, 2 = 2, 4 > 1, 4 > 2: 3.5 of 4. Second: none of 2. Their mean, whatever their sizes.
    assert probabilities_of_improvement([[2, 4], [0, 0]], [[1, 2], [3]]) == pytest.approx(3.5 / 8)


def test_probability_of_improvement_against_mann_whitney() -> None:
    x = [generator().integers(0, 6, 9), generator().integers(2, 9, 5)]
    y = [generator().integers(1, 5, 4), generator().integers(0, 9, 7)]

    expected = np.mean([mannwhitneyu(a, b).statistic / (a.size * b.size) for a, b in zip(x, y, strict=True)])

    assert probabilities_of_improvement(x, y) == pytest.approx(expected)


def test_the_first_row_is_the_sample_and_the_others_are_of_it() -> None:
    rows = draw(4, 1_000, generator())

    np.testing.assert_array_equal(rows[0], range(4))
    assert rows.shape == (1_001, 4)
    # Every run is drawn as often as any other, within 4 standard deviations.
    assert np.all(np.abs(np.bincount(rows[1:].ravel()) - 1_000) < 4 * np.sqrt(4_000 * 0.25 * 0.75))


def test_runs_stay_in_their_stratum() -> None:
    low, high = (resample(scores, 100, generator()) for scores in ([1.0, 2.0], [10.0, 20.0, 30.0]))

    assert set(np.unique(low)) == {1.0, 2.0}
    assert set(np.unique(high)) == {10.0, 20.0, 30.0}


def test_interval_against_scipy() -> None:
    scores = generator().gamma(2.0, size=12)
    reference = bootstrap(
        (scores,),
        lambda x, axis: trim_mean(x, 0.25, axis=axis),
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval

    value, low, high = estimate(interquartile_means([resample(scores, 20_000, generator())]))

    assert value == pytest.approx(trim_mean(scores, 0.25))
    assert (low, high) == pytest.approx((reference.low, reference.high), rel=0.03)


def test_intervals_cover_the_truth() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        strata = [resample(random.normal(task, 1.0, 10), 400, random) for task in (0.0, 0.5)]
        _, low, high = estimate(interquartile_means(strata))
        covered += low <= 0.25 <= high

    # The percentile method is a little narrow for 20 runs; 0.95 at best.
    assert 0.85 <= covered / 200 <= 0.99


def test_interval_by_hand() -> None:
    assert estimate([7.0, *range(101)], level=0.5) == (7.0, 25.0, 75.0)


def test_undefined_resamples_widen_the_interval() -> None:
    values = [1.0, *np.linspace(0.9, 1.1, 90), *[np.nan] * 10]

    assert estimate(values) == (1.0, -np.inf, np.inf)
    assert estimate(values, worst=0.0, best=2.0) == (1.0, 0.0, 2.0)


def test_an_infinite_resample_is_no_number_of_the_interval() -> None:
    value, low, high = estimate([1.0, *np.linspace(0.9, 1.1, 95), *[np.inf] * 5])

    assert (value, high) == (1.0, np.inf)
    assert 0.9 <= low < 0.92


def test_a_study_takes_less_than_a_second() -> None:
    scores = generator().normal(size=(10, 5))
    interquartile_means(scores[:, None])  # imports what it needs
    start = time.process_time()
    estimate(interquartile_means([resample(runs, 2_000, generator()) for runs in scores]))

    assert time.process_time() - start < 1
