"""Tasks that are won, tied and lost."""

from __future__ import annotations

import numpy as np
import pytest

from lit_gfs.metrics.intervals import resample
from lit_gfs.study.results.summary import summarize
from lit_gfs.study.results.table import MISSING
from lit_gfs.study.results.verdicts import outcomes
from support.synthetic_study import TRUTH, study, table


@pytest.mark.parametrize(
    ("ours", "own", "outcome"),
    [
        ([5, 6, 7], [1, 2, 3], "wins"),
        ([1, 2, 3], [5, 6, 7], "losses"),
        ([1, 9, 5], [2, 4, 6], "ties"),
        ([500, 500, 500], [500, 500, 500], "ties"),
        ([500, 500, 500], [499, 499, 499], "wins"),
    ],
)
def test_an_outcome_needs_an_interval_without_0(ours: list[float], own: list[float], outcome: str) -> None:
    generator = np.random.default_rng(0)
    sides = (resample(ours, 500, generator), resample(own, 500, generator))
    found = outcomes([("task", *sides)])

    assert [name for name, tasks in found.items() if tasks == ["task"]] == [outcome]


def test_a_single_run_and_an_unknown_score_decide_nothing() -> None:
    generator = np.random.default_rng(0)
    one, three = resample([9], 50, generator), resample([1, 2, 3], 50, generator)
    found = outcomes([("a", one, three), ("b", three, one), ("c", None, three), ("d", three, None)])

    assert found == {"wins": [], "ties": [], "losses": []}


def test_outcomes_of_a_study_are_those_of_its_tasks() -> None:
    plan = study(tasks=["acrobot", "lander", "walker"])
    absent = {cell.name: MISSING for cell in plan.cells() if cell.name.startswith("walker-large-baseline")}
    summary = summarize(plan, table(plan, TRUTH, noise=0.1, statuses=absent))
    (row,) = [row for row in summary["aggregates"] if row["set"] == "all tasks" and row["recipe"] == "gfs"]

    assert row["outcomes"] == {"wins": ["acrobot", "lander"], "ties": [], "losses": []}
    # Scores are compared on the tasks that both were run on.
    assert row["score_difference"]["strata"] == 2
    compared = row["compared_score"]["value"] - row["baseline_score"]["value"]
    assert row["score_difference"]["value"] == pytest.approx(compared, rel=1e-4)
    assert row["normalized_score"]["strata"] == 3
