from __future__ import annotations

import pytest

from lit_gfs.metrics.series import Series, SeriesRecord, Stretch, bounded, last_stretch


def test_a_full_record_keeps_points_at_equal_distances() -> None:
    series = bounded([(step, float(step)) for step in range(37)], most=8)

    assert series.steps == [0, 8, 16, 24, 32]


def test_a_short_series_is_kept_as_it_is() -> None:
    assert bounded([(3, 1.0), (5, 2.0)], most=8) == Series([3, 5], [1.0, 2.0])
    assert bounded([]) == Series([], [])


@pytest.mark.parametrize("interrupted_at", [1, 8, 9, 30])
def test_a_restored_record_goes_on_as_an_uninterrupted_one(interrupted_at: int) -> None:
    whole, first, second = SeriesRecord(8), SeriesRecord(8), SeriesRecord(8)
    for step in range(40):
        whole.add(step, {"tag": step / 7, "other": 1.0})
        if step == interrupted_at:
            second.load_state_dict(first.state_dict())
        (first if step < interrupted_at else second).add(step, {"tag": step / 7, "other": 1.0})

    assert second.series() == whole.series()


def test_a_stretch_needs_a_whole_window() -> None:
    assert last_stretch([True, True], window=3) is None
    assert last_stretch([True, True, False, True], window=3) is None
    assert last_stretch([False, True, True, True], window=3) == Stretch(1, None)
    assert last_stretch([True, True, True, False], window=3) == Stretch(0, 3)


def test_the_last_stretch_counts() -> None:
    holds = [True] * 3 + [False] * 2 + [True] * 4 + [False]

    assert last_stretch(holds, window=3) == Stretch(5, 9)


def test_a_share_lets_single_points_differ() -> None:
    holds = [False, True, False, True, True, False, True]

    assert last_stretch(holds, window=4) is None
    assert last_stretch(holds, window=4, share=0.5) == Stretch(1, None)
