from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lit_gfs.study.environment import environment
from lit_gfs.study.origin import Part
from lit_gfs.study.planning.plan import Study
from lit_gfs.study.report.figures import curve_figure, heat_map_figure, ladder_figure, scale_figure
from lit_gfs.study.report.page import estimate_cell, estimate_text, number, percent
from lit_gfs.study.report.panels import recipe_styles
from lit_gfs.study.report.report import write_report
from lit_gfs.study.report.tables import headline_section
from lit_gfs.study.results.summary import summarize
from lit_gfs.study.results.table import MISSING, GradientNorms, Table
from support.synthetic_study import FLOOR, REFERENCE, STEPS, TAG, TRUTH, study, table

COMMAND = "python -m lit_gfs study --config configs/studies/<mine>.yaml"


class Reader(HTMLParser):
    """Collects texts, targets and unbalanced tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for key, value in attrs if key in ("src", "href") and value]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(plan: Study, known: Table, directory: Path, resamples: int = 50) -> Reader:
    summary = summarize(plan, known, resamples=resamples)
    reader = Reader()
    reader.feed(
        write_report(directory, plan, known, summary, [Part(COMMAND, environment(), None)]).read_text(
            encoding="utf-8"
        )
    )
    assert reader.open == []
    return reader


def text(reader: Reader) -> str:
    return re.sub(r"\s+", " ", "".join(reader.texts))


def test_equal_tables_give_equal_reports(tmp_path: Path) -> None:
    known = table(study(), TRUTH)

    read(study(), known, tmp_path)
    once = (tmp_path / "report.html").read_bytes()
    read(study(), known, tmp_path)

    assert (tmp_path / "report.html").read_bytes() == once


def test_the_page_has_everything_and_needs_nothing(tmp_path: Path) -> None:
    plan = study(tasks=["acrobot", "lander"])
    known = table(plan, TRUTH, noise=0.1, statuses={"lander-large-gfs-seed_2": "failed"})
    reader = read(plan, known, tmp_path)
    content = text(reader)

    links = [target for target in reader.targets if target.startswith("#")]
    images = [target for target in reader.targets if target.startswith("data:image/")]
    assert len(links) == 9
    # All tasks, task by task, curves against steps and against time, and a heat map of each task.
    assert len(images) == 6
    assert len(links) + len(images) == len(reader.targets)
    assert "lander-large-gfs-seed_2" in content
    assert "ValueError: exploded" in content
    assert "1 of 30 cells failed" in content
    assert COMMAND in content
    assert f"python -m lit_gfs report {tmp_path}" in content
    for name in (
        "torch",
        "torchrl",
        "lightning",
        "numpy",
        "python",
        "lit_gfs",
        "CPU cores",
        "device",
        "date",
    ):
        assert name in environment()
        assert environment()[name] in content or name == "date"


@pytest.mark.parametrize(
    ("tuned", "remark"),
    [([], "No task took part"), (["acrobot", "lander"], "All tasks took part in choosing the recipes: none")],
)
def test_it_says_when_nothing_is_held_out(tuned: list[str], remark: str) -> None:
    compare = {"baseline": "baseline", "base_scale": "base", "tuned_on": tuned}
    plan = study(tasks=["acrobot", "lander"], seeds=2, compare=compare)
    summary = summarize(plan, table(plan, TRUTH, noise=0.1), resamples=50)

    assert remark in headline_section(summary, "Headline figures")


def test_one_seed_and_a_baseline_that_did_not_learn(tmp_path: Path) -> None:
    plan = study(seeds=1)
    known = table(plan, {**TRUTH, ("baseline", "large"): (1.0, 0.0)})
    content = text(read(plan, known, tmp_path))

    assert "undefined (baseline did not learn)" in content
    assert "one seed" in content
    assert "0 of 3 cells failed" in content
    assert "None." in content


def test_a_study_of_which_nothing_was_run(tmp_path: Path) -> None:
    plan = study()
    known = table(plan, TRUTH, statuses={cell.name: "missing" for cell in plan.cells()})
    content = text(read(plan, known, tmp_path))

    assert "0 of 15 cells failed, 15 were not run" in content
    assert "No gradient norms were recorded." in content


def test_a_study_of_which_everything_failed(tmp_path: Path) -> None:
    plan = study()
    known = table(plan, TRUTH, statuses={cell.name: "failed" for cell in plan.cells()})
    content = text(read(plan, known, tmp_path))

    assert "15 of 15 cells failed" in content
    assert "undefined (baseline at the floor)" in content


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    plan = study(recipes=["baseline", "<b>&gfs"], seeds=2)
    truth = {("<b>&gfs" if recipe == "gfs" else recipe, scale): v for (recipe, scale), v in TRUTH.items()}

    assert "<b>&gfs" in text(read(plan, table(plan, truth, noise=0.1), tmp_path))


def test_a_large_page_stays_light(tmp_path: Path) -> None:
    recipes = ["baseline", "gfs", "clip", "kron"]
    truth = {(recipe, scale): (1.5, 0.9) for recipe in recipes for scale in ("base", "large")}
    plan = study(tasks=["a", "b"], seeds=2, recipes=recipes, skip=[])
    read(plan, table(plan, truth, noise=0.1), tmp_path)

    assert (tmp_path / "report.html").stat().st_size < 1_500_000


def test_styles_tell_recipes_apart() -> None:
    recipes = [f"recipe_{index}" for index in range(12)]
    styles = recipe_styles(recipes, "recipe_3")

    assert list(styles) == recipes
    assert len(set(styles.values())) == 12
    assert len({style.colour for style in list(styles.values())[:10]}) == 10
    # A recipe that is added does not change the others' colours.
    assert recipe_styles(recipes[:5], "recipe_3")["recipe_4"] == styles["recipe_4"]


def test_scale_figure_draws_the_scores() -> None:
    plan = study()
    known = table(plan, TRUTH, noise=0.1)
    summary = summarize(plan, known, resamples=50)
    (axis,) = scale_figure(summary).axes
    lines = {line.get_marker(): line for line in axis.lines if line.get_marker() != "."}
    scores = {
        row["scale"]: row["final_score"]["value"] for row in summary["groups"] if row["recipe"] == "baseline"
    }

    np.testing.assert_allclose(lines["o"].get_ydata(), [scores["base"], scores["large"]])
    dots = [line.get_ydata() for line in axis.lines if line.get_marker() == "."]
    assert sorted(np.concatenate(dots)) == pytest.approx(
        sorted(run.final_score for run in known.runs), rel=1e-5
    )
    assert [label.get_text() for label in axis.get_xticklabels()] == ["base", "large"]


def with_a_ladder() -> tuple[Study, Table]:
    factors = {
        "task": {task: {"floor": FLOOR, "reference": REFERENCE} for task in ("acrobot", "lander")},
        "scale": {f"{depth} deep": {"options": {"model.trunk.depth": depth}} for depth in (4, 8, 64)},
        "recipe": {recipe: {} for recipe in ("baseline", "baseline_tuned", "gfs")},
        "seed": [0, 1, 2],
    }
    compare = {"baseline": "baseline", "tuned_baseline": "baseline_tuned", "base_scale": "4 deep"}
    plan = study(factors=factors, compare=compare, skip=[{"scale": "4 deep", "recipe": "gfs"}])
    heights = {"baseline": (1.0, 1.1, 0.1), "baseline_tuned": (1.0, 1.05, 0.4), "gfs": (1.0, 1.2, 1.1)}
    truth = {
        (recipe, scale): (1.0, height)
        for recipe, row in heights.items()
        for scale, height in zip(factors["scale"], row, strict=True)
    }
    return plan, table(plan, truth, noise=0.01)


def test_ladder_figure_marks_the_largest_network_without_loss() -> None:
    summary = summarize(*with_a_ladder(), resamples=50)
    axis, _ = ladder_figure(summary, *summary["ladders"]).axes
    stars = [round(float(line.get_xdata()[0])) for line in axis.lines if line.get_marker() == "*"]
    scores = [
        row["final_score"]["value"]
        for row in summary["groups"]
        if (row["stratum"], row["recipe"]) == ("acrobot", "baseline")
    ]

    assert stars == [3, 3, 6]  # log2 of the depth, by recipe
    assert [label.get_text() for label in axis.get_xticklabels()] == ["4", "8", "64"]
    dotted = next(line for line in axis.lines if line.get_linestyle() == ":")
    assert dotted.get_ydata()[0] == pytest.approx(scores[0])
    dashed = next(line for line in axis.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(dashed.get_ydata(), scores)


def test_the_page_has_the_ladder_both_baselines_and_the_parts(tmp_path: Path) -> None:
    plan, known = with_a_ladder()
    summary = summarize(plan, known, resamples=50)
    parts = [Part(COMMAND, {"commit": "abc"}, ["a"]), Part("study --root elsewhere", {"device": "GPU"}, [])]
    parts.append(parts[1]._replace(cells=["b", "c"]))
    reader = Reader()
    page = write_report(tmp_path, plan, known, summary, parts).read_text(encoding="utf-8")
    reader.feed(page)
    content = text(reader)

    assert len([target for target in reader.targets if target.startswith("#")]) == 10
    assert "<td>acrobot</td><td>gfs</td><td>64 deep</td><td>64 deep</td>" in page
    assert "Against baseline_tuned" in content
    assert "Where size hurts" in content
    assert "run in 2 parts" in content
    assert "abc" in content


def test_sizes_recipes_and_tasks_without_runs_take_no_room(tmp_path: Path) -> None:
    plan, known = with_a_ladder()
    statuses = {
        cell.name: MISSING
        for cell in plan.cells()
        if cell.levels["scale"] != "64 deep"
        or cell.levels["task"] == "lander"
        or cell.levels["recipe"] == "baseline_tuned"
    }
    kept = [run._replace(status=statuses.get(run.cell, run.status)) for run in known.runs]
    curves = {key: curve for key, curve in known.curves.items() if key[0] not in statuses}
    partial = Table(kept, curves, {})
    summary = summarize(plan, partial, resamples=50)

    (panel,) = curve_figure(summary).axes
    assert panel.get_title() == "acrobot · 64 deep"
    (panel,) = scale_figure(summary).axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["64 deep"]
    (legend,) = scale_figure(summary).legends
    assert [label.get_text() for label in legend.get_texts()] == ["baseline", "gfs"]
    # A single size is no ladder yet.
    assert "The largest network without loss" not in text(read(plan, partial, tmp_path))


def test_curves_of_many_sizes_wrap() -> None:
    scales = [f"{depth} deep" for depth in range(6)]
    plan = study(scales=scales, recipes=["baseline"], seeds=2)
    truth = {("baseline", scale): (1.0, 1.0 + index) for index, scale in enumerate(scales)}
    axes = curve_figure(summarize(plan, table(plan, truth), resamples=50)).axes[:6]

    assert [axis.get_title() for axis in axes] == [f"acrobot · {scale}" for scale in scales]
    assert len({round(axis.get_position().y0, 6) for axis in axes}) == 2
    assert len({axis.get_ylim() for axis in axes}) == 1


def test_curve_figure_draws_the_curves() -> None:
    plan = study()
    summary = summarize(plan, table(plan, TRUTH, noise=0.1), resamples=50)
    base, large = curve_figure(summary).axes

    assert [len(axis.lines) for axis in (base, large)] == [1, 2]
    assert base.get_ylim() == large.get_ylim()
    np.testing.assert_array_equal(large.lines[1].get_xdata(), STEPS)
    assert curve_figure(summary, "seconds").axes[0].get_xlabel() == "seconds"


def test_heat_maps_share_their_colours() -> None:
    weak = GradientNorms(["a", "b"], [0, 10], [[1e-3] * 2, [1e-3] * 2], [[1.0] * 2, [0.0, float("nan")]])
    strong = GradientNorms(["a"], [0], [[1.0]], [[1.0]])
    figure = heat_map_figure(
        {("base", "one"): weak, ("large", "two"): strong}, ["one", "two"], ["base", "large"], "s"
    )
    images = {axis.get_title(): axis.images[0].get_array() for axis in figure.axes if axis.images}

    assert list(images) == [
        "one\nbase · raw",
        "one\nbase · applied",
        "two\nlarge · raw",
        "two\nlarge · applied",
    ]
    np.testing.assert_array_equal(images["one\nbase · applied"][0, 0], images["two\nlarge · raw"][0, 0])
    assert not np.array_equal(images["one\nbase · raw"][0, 0], images["two\nlarge · raw"][0, 0])
    # The labels at the ends of a panel reach neither its neighbour nor the colour bar.
    panels = [axis for axis in figure.axes if axis.images]
    sides = [[label.get_ha() for label in axis.get_xticklabels()] for axis in panels]
    assert sides == [["left", "right"]] * 2 + [["left"]] * 2
    pixels = {tuple(np.round(pixel, 3)) for pixel in images["one\nbase · applied"].reshape(-1, 4)}
    assert len(pixels) == 3  # a norm, none, and one that is not finite


def test_numbers_for_people() -> None:
    assert [number(value) for value in (12_345.6, 999.4, -81.234, 0.01234, 0.0)] == [
        "12,346",
        "999",
        "-81.2",
        "0.0123",
        "0",
    ]
    known = {"value": 0.625, "interval": [None, 0.7], "note": "", "strata": 1}
    assert estimate_text(known, percent) == "62% [−∞, 70%]"  # noqa: RUF001
    assert "1 of 3 tasks" in estimate_cell(known, percent, strata=3)
    assert (
        estimate_text({"value": None, "interval": None, "note": "never", "strata": 0}, percent)
        == "undefined (never)"
    )


def test_gradient_norms_of_the_first_run_of_a_recipe_are_shown(tmp_path: Path) -> None:
    plan = study(seeds=2)
    known = table(plan, TRUTH, noise=0.1)
    assert (known.runs[0].cell, TAG) in known.curves
    nothing = known._replace(gradient_norms={})

    shown = [
        len([t for t in read(plan, each, tmp_path).targets if t.startswith("data:")])
        for each in (known, nothing)
    ]
    assert shown == [5, 4]
