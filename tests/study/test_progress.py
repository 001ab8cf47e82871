"""What is said about a study while it runs."""

from __future__ import annotations

import io
import re

import pytest
from lightning.pytorch import Trainer
from rich.console import Console

from lit_gfs.agents import PPO
from lit_gfs.datamodules import RolloutDataModule
from lit_gfs.study.cell.told_steps import ToldSteps
from lit_gfs.study.planning.plan import Cell, Study, read_study
from lit_gfs.study.progress import StudyProgress
from lit_gfs.study.results.collect import Result
from lit_gfs.study.results.table import FAILED, FINISHED, Curve
from lit_gfs.study.running import Steps
from support import study_fits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("lit_gfs.study.progress.time.monotonic", lambda: now[0])
    return now


def study(seeds: int = 3) -> Study:
    return read_study(
        {
            "name": "example",
            "score": {"final_share": 1.0},
            "factors": {
                "task": {"t": {"floor": 0, "reference": 1}},
                "scale": {"base": {}, "large": {}},
                "recipe": {"baseline": {}},
                "seed": list(range(seeds)),
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
        progress.refresh({})
        progress.started(second)
        progress.ended(second, Result(second.name, [], [], FAILED, "killed"))

    assert capsys.readouterr().out.splitlines() == [
        "example: 6 cells: 4 left out, 2 to run, 1 at a time",
        "1/2 t-base-baseline-seed_0 | 1.00 | 1:05 | 1:04 left",
        "2/2 t-large-baseline-seed_0 | failed: killed | 0:00 | done",
    ]
    assert set(results) == {first.name, second.name}


def test_cells_in_the_queue_of_a_cluster_wait_and_take_no_time(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = study(seeds=1)
    first, second = plan.cells()
    with StudyProgress(plan, [first, second], {}, jobs=None, queues=True) as progress:
        progress.started(first)
        progress.started(second)
        clock[0] = 1000  # in the queue
        progress.refresh({second.name: Steps(0, 100)})
        clock[0] = 1010
        progress.refresh({second.name: Steps(10, 100)})
        assert progress.seconds_left() == pytest.approx(90 + 100)  # one runs at a time, as far as can be seen
        clock[0] = 1100
        progress.ended(second, finished(second, 100))
        progress.ended(first, finished(first, 7))  # unseen

    assert capsys.readouterr().out.splitlines() == [
        "example: 2 cells: 2 to run, as many at a time as there is room for",
        f"0/2 running {second.name} 0/100 (0%), 0:00; 1 waiting | -:-- left",
        f"0/2 running {second.name} 10/100 (10%), 0:10; 1 waiting | 3:10 left",
        f"1/2 {second.name} | 1.00 | 1:40 | 1:40 left",
        f"2/2 {first.name} | 1.00 | 0:07 | done",
    ]


def test_a_cell_that_starts_again_is_told_and_left_to_do(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = study()
    cell, *_ = plan.cells()

    with StudyProgress(plan, [cell], {}, jobs=1) as progress:
        progress.started(cell)
        clock[0] = 60
        progress.interrupted(cell, "killed by SIGKILL (out of memory?)")
        assert progress.left == 1
        clock[0] = 100
        progress.started(cell)
        clock[0] = 110
        progress.ended(cell, finished(cell, 70))

    assert capsys.readouterr().out.splitlines()[1:] == [
        "0/1 t-base-baseline-seed_0 | killed by SIGKILL (out of memory?); starts again",
        "1/1 t-base-baseline-seed_0 | 1.00 | 0:10 | done",
    ]


def test_a_running_cell_is_shown_before_it_ends(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = study()
    before, broken, first, *_ = plan.cells()
    results = {
        before.name: finished(before, 64)._replace(wall_seconds=None),
        broken.name: Result(broken.name, [], [], FAILED, "killed"),
    }
    with StudyProgress(plan, [first], results, jobs=1) as progress:
        progress.started(first)
        progress.refresh({})
        for clock[0], steps in ((1, 0), (6, 0), (11, 200), (12, 250), (60, 500), (71, 600), (80, 700)):
            progress.refresh({first.name: Steps(steps, 1_000)})
        clock[0] = 100
        progress.ended(first, finished(first, 99))

    assert capsys.readouterr().out.splitlines() == [
        "example: 6 cells: 1 finished before, 1 failed before, 3 left out, 1 to run, 1 at a time",
        "before: t-base-baseline-seed_0 | 1.00",
        "before: t-large-baseline-seed_0 | failed: killed",
        "0/1 running t-base-baseline-seed_1 starting, 0:00 | -:-- left",
        "0/1 running t-base-baseline-seed_1 200/1,000 (20%), 0:11 | 0:40 left",
        "0/1 running t-base-baseline-seed_1 600/1,000 (60%), 1:11 | 0:47 left",
        "1/1 t-base-baseline-seed_1 | 1.00 | 1:40 | done",
    ]


def test_many_results_from_before_are_counted_alone(capsys: pytest.CaptureFixture[str]) -> None:
    plan = study(seeds=10)
    *before, last = plan.cells()
    with StudyProgress(plan, [last], {cell.name: finished(cell, 1) for cell in before}, jobs=1):
        pass

    assert capsys.readouterr().out.splitlines() == [
        "example: 20 cells: 19 finished before, 1 to run, 1 at a time"
    ]


def test_the_time_left_is_known_before_a_cell_has_ended(clock: list[float]) -> None:
    plan = study()
    base, large, *_ = plan.cells()
    progress = StudyProgress(plan, plan.cells(), {}, jobs=2)
    for cell in (base, large):
        progress.started(cell)
    clock[0] = 5  # imports
    progress.refresh({base.name: Steps(0, 100), large.name: Steps(40, 100)})  # large resumes
    clock[0] = 7
    progress.refresh({base.name: Steps(20, 100), large.name: Steps(41, 100)})
    assert progress.seconds_left() is None  # two seconds say nothing yet
    clock[0] = 15
    progress.refresh({base.name: Steps(50, 100), large.name: Steps(50, 100)})

    # base takes 20 seconds and has 10 left; large takes 100 and has 50 left; two more of each kind.
    assert progress.seconds_left() == pytest.approx((10 + 50 + 2 * 20 + 2 * 100) / 2)
    # A finished cell tells more about its kind than one that runs.
    progress.results["t-base-baseline-seed_2"] = finished(base, 30)
    del progress._left["t-base-baseline-seed_2"]
    assert progress.seconds_left() == pytest.approx((10 + 50 + 30 + 2 * 100) / 2)


def test_in_a_terminal_the_lines_are_rewritten(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = study()
    first, second, *_ = plan.cells()
    screen = io.StringIO()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(
        "lit_gfs.study.progress.Console", lambda: Console(file=screen, force_terminal=True, width=60)
    )
    with StudyProgress(plan, [first, second], {}, jobs=1) as progress:
        progress.started(first)
        progress.refresh({first.name: Steps(0, 60_000)})
        clock[0] = 10
        progress.refresh({first.name: Steps(12_000, 60_000)})
        # The bar counts a fifth of the first of two cells.
        bar = progress._lines().columns[0]._cells[0].columns[1]._cells[0]  # type: ignore[union-attr]
        assert bar.completed == pytest.approx(0.2)
        progress.ended(first, finished(first, 50))

    written = screen.getvalue()
    assert "t-base-baseline-seed_0 12,000/60,000 (20%), 0:10" in written
    assert "\x1b[1A" in written  # one line up
    assert all(len(line) <= 60 for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", written).split("\r"))


def test_a_training_tells_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_gfs.study.cell.told_steps.SECONDS_BETWEEN", 0.0)
    told: list[tuple[int, int | None]] = []
    data = RolloutDataModule("CartPole-v1", num_envs=2, rollout_steps=8, total_steps=64)
    trainer = Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[ToldSteps(lambda done, total: told.append((done, total)))],
    )
    trainer.fit(PPO(data.env_spec), data)

    assert told[0] == (0, 64)
    assert told[-1] == (64, 64)
    assert {done for done, _ in told} >= {16, 32, 48}
