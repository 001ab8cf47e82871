"""The estimate of Atari-57 on paper: its arithmetic, and the order of its cells."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs/results/atari57.md"


@pytest.fixture
def paper() -> ModuleType:
    import atari57

    return atari57


def test_there_is_a_cell_for_each_game_size_recipe_and_seed(paper: ModuleType) -> None:
    assert len(paper.durations(paper.WAYS[0])) == 57 * 3 * 4 * 5


def test_the_measured_way_has_the_measured_speed(paper: ModuleType) -> None:
    eager, *_ = paper.WAYS
    assert paper.steps_per_second(paper.SMALL, 1.0, eager) == pytest.approx(2_336)
    # A policy takes 0.615 ms more for 8 steps, and 16 updates 2.23 ms more each for 1,024 steps.
    more = 0.615 / 8e3 + 16 * 2.23 / 1_024e3
    assert 1 / paper.steps_per_second(paper.LARGE, 1.0, eager) == pytest.approx(1 / 2_336 + more)


def test_the_slower_of_simulators_and_networks_decides_among_several_cells(paper: ModuleType) -> None:
    *_, several = paper.WAYS
    assert 4 * paper.steps_per_second(paper.SMALL, 1.0, several) == pytest.approx(10_002)
    networks = 1 / paper.network_seconds(paper.LARGE, 10.0, graphed=True)
    assert networks < 10_002
    assert 4 * paper.steps_per_second(paper.LARGE, 10.0, several) == pytest.approx(networks)


@pytest.mark.parametrize(("slots", "expected"), [(1, 12.0), (2, 8.0), (3, 7.0), (9, 6.0)])
def test_a_free_slot_takes_the_next_cell(paper: ModuleType, slots: int, expected: float) -> None:
    assert paper.makespan([1.0, 2.0, 3.0, 6.0], slots) == pytest.approx(expected)


def test_the_committed_table_is_that_of_the_script(paper: ModuleType) -> None:
    assert paper.table() in PAGE.read_text(encoding="utf-8")


def test_tables_and_report_of_a_large_study_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    import study_tables

    study = study_tables.plan(57)
    assert len(study.cells()) == 3_420
    assert study_tables.measure("add", lambda: 1 + 1) == 2
    assert capsys.readouterr().out.startswith("| add | 0.")
