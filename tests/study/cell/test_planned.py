"""Planned cells on the disk: their commands, and what is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_gfs.errors import UserError
from lit_gfs.study.cell.planned import choose_cells, fit_command, read_results
from lit_gfs.study.planning.plan import Cell, Score, Study
from lit_gfs.study.results.collect import Result, write_result
from lit_gfs.study.results.table import FAILED, FINISHED, Curve
from support.study_fits import study


def test_the_command_of_a_cell_is_complete() -> None:
    (cell,) = study("well").cells()
    assert fit_command(cell, Path("runs/example"), 3) == [
        "fit",
        "--trainer.enable_progress_bar=false",
        "--ends=well",
        "--seed_everything=0",
        "--run.root=runs/example",
        "--run.name=cells",
        "--run.version=t-base-well-seed_0",
        "--threads=3",
    ]


def finish(cell: Cell, directory: Path, status: str = FINISHED) -> None:
    """Leave what a cell that ended leaves behind."""
    place = directory / "cells" / cell.name
    place.mkdir(parents=True)
    curves = {"eval/episode_return": Curve([1], [1.0], [1.0])} if status == FINISHED else {}
    write_result(
        place, Result(cell.name, cell.arguments, fit_command(cell, directory, 1), status, curves=curves)
    )


def test_what_ended_is_not_repeated_unless_it_failed_and_that_is_asked_for(tmp_path: Path) -> None:
    plan = study("well", "bad", "half", "new")
    well, bad, half, new = plan.cells()
    finish(well, tmp_path)
    finish(bad, tmp_path, FAILED)
    (tmp_path / "cells" / half.name).mkdir()

    results = read_results(plan, tmp_path)

    assert set(results) == {well.name, bad.name}
    assert choose_cells(plan, results) == [half, new]
    assert choose_cells(plan, results, retry_failed=True) == [bad, half, new]
    assert choose_cells(plan, results, only={"recipe": ["new", "well"]}) == [new]


def test_a_finished_cell_with_other_arguments_is_refused(tmp_path: Path) -> None:
    before, after = study("well", lr="1"), study("well", lr="2")
    finish(before.cells()[0], tmp_path)

    assert set(read_results(before, tmp_path)) == {"t-base-well-seed_0"}
    expected = (
        "'t-base-well-seed_0' was finished with other arguments: --lr=1 became --lr=2; .*cells/t-base-well"
    )
    with pytest.raises(UserError, match=expected):
        read_results(after, tmp_path)
    with pytest.raises(UserError, match="other arguments: --threads=1 became --threads=2; "):
        read_results(before, tmp_path, threads=2)


def test_new_levels_only_add_cells(tmp_path: Path) -> None:
    finish(study("well").cells()[0], tmp_path)

    larger = study("well", "other", seeds=2)

    left = [cell.name for cell in choose_cells(larger, read_results(larger, tmp_path))]
    assert left == ["t-base-other-seed_0", "t-base-well-seed_1", "t-base-other-seed_1"]


def test_a_failed_cell_with_other_arguments_is_a_new_one(tmp_path: Path) -> None:
    finish(study("well", lr="1").cells()[0], tmp_path, FAILED)

    assert read_results(study("well", lr="2"), tmp_path) == {}


def test_a_score_that_was_not_collected_is_told(tmp_path: Path) -> None:
    plan = study("well")
    finish(plan.cells()[0], tmp_path)
    changed = Study(**{**vars(plan), "score": Score(tag="eval/accuracy")})

    with pytest.raises(UserError, match="'eval/accuracy' was not collected"):
        read_results(changed, tmp_path)
