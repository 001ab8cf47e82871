"""What is said about a study while it runs."""

from __future__ import annotations

import pytest

from lit_gfs.study.collect import Result
from lit_gfs.study.plan import Cell, Study, read_study
from lit_gfs.study.progress import StudyProgress
from lit_gfs.study.table import FAILED, FINISHED, Curve
from support import study_fits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("lit_gfs.study.progress.time.monotonic", lambda: now[0])
    return now


def study() -> Study:
    return read_study(
        {
            "name": "example",
            "score": {"final_share": 1.0},
            "factors": {
                "task": {"t": {"floor": 0, "reference": 1}},
                "scale": {"base": {}, "large": {}},
                "recipe": {"baseline": {}},
                "seed": [0, 1, 2],
            },
            "compare": {"baseline": "baseline", "base_scale": "base"},
        }
    )


def finished(cell: Cell, seconds: float) -> Result:
    curves = {study_fits.TAG: Curve([1, 2], [0.0, 1.0], [0.5, 1.5])}
    return Result(cell.name, [], [], FINISHED, wall_seconds=seconds, curves=curves)


def test_the_time_left_goes_by_cells_of_the_same_kind(clock: list[float]) -> None:
    plan = study()
    base, large, *rest = plan.cells()
    progress = StudyProgress(plan, rest, {}, jobs=2)
    assert progress.seconds_left() is None

    progress.results[base.name] = finished(base, 10)
    assert progress.seconds_left() == pytest.approx(4 * 10 / 2)  # the large ones are taken for base ones
    progress.results[large.name] = finished(large, 100)
    assert progress.seconds_left() == pytest.approx((2 * 10 + 2 * 100) / 2)

    progress.started(rest[0])
    progress.started(rest[1])
    clock[0] = 8
    assert progress.seconds_left() == pytest.approx((2 + 92 + 10 + 100) / 2)
    clock[0] = 12  # longer than expected: it ends any moment
    assert progress.seconds_left() == 100  # no less than the longest takes


def test_the_last_cell_is_not_made_faster_by_free_jobs(clock: list[float]) -> None:
    plan = study()
    base, *_, last = plan.cells()
    progress = StudyProgress(plan, [last], {base.name: finished(base, 60)}, jobs=8)

    assert progress.seconds_left() == 60


def test_every_cell_gets_one_plain_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    plan = study()
    first, second, *_ = plan.cells()
    results: dict[str, Result] = {}

    with StudyProgress(plan, [first, second], results, jobs=1) as progress:
        progress.started(first)
        clock[0] = 65
        progress.ended(first, finished(first, 64))
        progress.refresh()
        progress.started(second)
        progress.ended(second, Result(second.name, [], [], FAILED, "killed"))

    assert capsys.readouterr().out.splitlines() == [
        "example: 2 cells to run, 1 at a time; 0 ended before",
        "1/2 t-base-baseline-seed_0 | 1.00 | 1:05 | 1:04 left",
        "2/2 t-large-baseline-seed_0 | failed: killed | 0:00 | done",
    ]
    assert set(results) == {first.name, second.name}
