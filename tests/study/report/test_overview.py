"""The first screen of a report."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lit_gfs.study.report.figures import overview_figure
from lit_gfs.study.report.overview import overview_section, verdict_section
from lit_gfs.study.results.summary import Summary, summarize
from lit_gfs.study.results.table import MISSING
from support.synthetic_study import TRUTH, study, table


@pytest.fixture(scope="module")
def summary() -> Summary:
    """A study in which gfs wins on two tasks, and the baseline was run on a third alone."""
    plan = study(tasks=["acrobot", "lander", "walker"])
    absent = {cell.name: MISSING for cell in plan.cells() if cell.name.startswith("walker-large-gfs")}
    return summarize(plan, table(plan, TRUTH, noise=0.02, statuses=absent), resamples=50)


def row(summary: Summary, recipe: str, name: str = "all tasks") -> Any:
    wanted = (name, "large", recipe)
    (found,) = [row for row in summary["aggregates"] if (row["set"], row["scale"], row["recipe"]) == wanted]
    return found


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_the_first_screen_has_scores_differences_and_outcomes(summary: Summary) -> None:
    figures = row(summary, "gfs")
    page = overview_section(summary, "At a glance")
    low, high = figures["score_difference"]["interval"]

    assert f"{figures['score_difference']['value']:+.2f} [{low:+.2f}, {high:+.2f}]" in words(page)
    assert f"{figures['compared_score']['value']:.2f}" in words(page)
    chips = re.findall(r'<span class="chip \w*" title="([^"]*)">(\d)</span>', page)
    assert chips == [("wins: acrobot, lander", "2"), ("ties: none", "0"), ("losses: none", "0")]
    assert page.count("data:image/") == 1
    assert words(page).count(" win ") == 2  # task by task


def test_the_first_screen_before_any_run_of_a_recipe() -> None:
    plan = study(recipes=["baseline"])
    summary = summarize(plan, table(plan, TRUTH), resamples=50)

    assert "No recipe was run beside it yet." in overview_section(summary, "At a glance")


def test_the_verdicts_say_what_the_figures_say(summary: Summary) -> None:
    page = words(verdict_section(summary, "Verdicts"))
    for recipe, verdict in (("gfs", "met"), ("baseline", "not met")):
        figure = row(summary, recipe)["ratio"]
        low, high = figure["interval"]
        assert row(summary, recipe)["verdicts"]["ratio"] == verdict
        assert f"{recipe} {figure['value']:.2f} [{low:.2f}, {high:.2f}] {verdict} " in page
    assert [name in page for name in ("All tasks", "Held-out tasks", "Where size hurts")] == [True] * 3


def test_the_overview_draws_scores_by_size(summary: Summary) -> None:
    figure = overview_figure(summary)
    assert figure is not None
    (axis,) = figure.axes
    points = [line for line in axis.lines if line.get_marker() not in ("", "None", None)]
    expected = [
        found["normalized_score"]["value"]
        for recipe in ("baseline", "gfs")
        for found in summary["aggregates"]
        if found["set"] == "all tasks" and found["recipe"] == recipe
    ]

    assert [line.get_ydata()[0] for line in points] == expected
    # gfs was run on fewer tasks.
    assert [line.get_markerfacecolor() == "white" for line in points] == [False, False, True]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["base", "large"]


def test_without_floors_there_is_no_overview() -> None:
    plan = study(factors={**_factors(), "task": {"acrobot": {}}})
    known = table(plan, TRUTH)
    raw = known._replace(runs=[run._replace(normalized_score=None) for run in known.runs])
    summary = summarize(plan, raw, resamples=50)

    assert overview_figure(summary) is None
    page = overview_section(summary, "At a glance")
    assert "No task has a floor and a reference" in page
    # Raw scores still tell who wins.
    assert row(summary, "gfs")["outcomes"]["wins"] == ["acrobot"]


def _factors() -> dict[str, Any]:
    return {"scale": {"base": {}, "large": {}}, "recipe": {"baseline": {}, "gfs": {}}, "seed": [0, 1, 2]}
