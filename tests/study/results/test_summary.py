from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import trim_mean

from lit_gfs.metrics.intervals import draw
from lit_gfs.metrics.scores import instability
from lit_gfs.study.results.curves import group_curve
from lit_gfs.study.results.summary import ALL, HELD_OUT, STRATUM, TUNED, Summary, summarize, write_summary
from lit_gfs.study.results.table import Curve, Run, Table
from support.synthetic_study import FLOOR, REFERENCE, SECONDS_PER_STEP, STEPS, TAG, TRUTH, study, table

# The same height at both scales, so that only speed differs.
SPEED: Any = {
    ("baseline", "base"): (1.0, 1.0),
    ("baseline", "large"): (1.0, 1.0),
    ("gfs", "large"): (1.8, 1.0),
}


def headline(summary: Summary, recipe: str, scale: str = "large", name: str = ALL, stratum: str = "") -> Any:
    wanted = (name, stratum, scale, recipe)
    return next(
        row
        for row in summary["aggregates"]
        if (row["set"], row["stratum"], row["scale"], row["recipe"]) == wanted
    )


def group(summary: Summary, recipe: str, scale: str = "large") -> Any:
    return next(row for row in summary["groups"] if (row["scale"], row["recipe"]) == (scale, recipe))


def with_runs(original: Table, change: Any) -> Table:
    return original._replace(runs=[change(run) for run in original.runs])


def with_scores(original: Table, cells: str, scores: list[float]) -> Table:
    """Replace the curves of all cells whose name contains a text."""
    curves = {
        key: Curve(curve.steps, curve.seconds, scores) if cells in key[0] else curve
        for key, curve in original.curves.items()
    }
    return original._replace(curves=curves)


def test_a_curve_that_does_not_measure_speed_gives_no_speed_up() -> None:
    plan = study(score={"measures_speed": False})
    summary = summarize(plan, table(plan, SPEED))

    for recipe in ("gfs", "baseline"):
        for name in (
            "speed_up",
            "speed_up_seconds",
            "speed_up_to_base_score",
            "speed_up_over_base",
            "speed_up_over_base_seconds",
        ):
            assert headline(summary, recipe)[name]["value"] is None
        assert group(summary, recipe)["steps_to_reach"]["note"] == "the objective changes by design"
    assert headline(summary, "gfs")["speed_up"]["note"] == "the objective changes by design"
    assert headline(summary, "gfs")["verdicts"]["speed_up"] == "undefined"
    assert headline(summary, "gfs")["ratio"]["value"] == pytest.approx(1.0, rel=0.02)


def test_a_recipe_that_is_1_8_times_faster() -> None:
    plan = study()
    figures = headline(summarize(plan, table(plan, SPEED)), "gfs")

    # Smoothing over three evaluations delays both by 1,000 steps, which costs the faster one more.
    assert figures["speed_up"]["value"] == pytest.approx(1.8, rel=0.05)
    assert figures["speed_up_seconds"]["value"] == pytest.approx(figures["speed_up"]["value"], rel=1e-4)
    assert figures["speed_up_over_base"]["value"] == figures["speed_up"]["value"]
    # Runs without noise are all alike.
    assert figures["speed_up"]["interval"] == [figures["speed_up"]["value"]] * 2


def test_speed_up_by_hand() -> None:
    plan = study()
    steps = np.array(STEPS)
    known = table(plan, SPEED)
    # Straight lines from -500: the baseline gains 10 in 1,000 steps, the recipe 30 until it stands at 0.
    baseline = (FLOOR + steps / 100).tolist()
    recipe = np.minimum(FLOOR + 3 * steps / 100, 0).tolist()
    known = with_scores(with_scores(known, "large-baseline", baseline), "large-gfs", recipe)
    figures = summarize(plan, known)

    # Smoothed, the baseline is at step s where it was at s - 1,000; its last tenth is 37,000 to 40,000.
    # It has the mean of that, of 38,500 - 1,000, at 38,500, and the recipe that score at 12,500 + 1,000.
    assert headline(figures, "gfs")["speed_up"]["value"] == pytest.approx(38_500 / 13_500, rel=1e-5)
    assert group(figures, "gfs")["steps_to_reach"]["value"] == pytest.approx(13_500)
    assert group(figures, "baseline")["steps_to_reach"]["value"] == pytest.approx(38_500)


def test_wall_time_counts_for_a_recipe_that_is_slower_to_run() -> None:
    plan = study()
    known = table(plan, SPEED)
    slow = {
        key: curve._replace(seconds=[3 * second for second in curve.seconds]) if "gfs" in key[0] else curve
        for key, curve in known.curves.items()
    }
    figures = headline(summarize(plan, known._replace(curves=slow)), "gfs")

    assert figures["speed_up_seconds"]["value"] == pytest.approx(figures["speed_up"]["value"] / 3, rel=1e-4)


def test_aggregates_against_an_independent_computation() -> None:
    plan = study(tasks=["acrobot", "lander", "walker"])
    known = table(plan, TRUTH, noise=0.1)
    figures = headline(summarize(plan, known), "gfs")

    def column(name: str, recipe: str, scale: str) -> list[float]:
        chosen = [run for run in known.runs if (run.levels["recipe"], run.levels["scale"]) == (recipe, scale)]
        return [getattr(run, name) for run in chosen]

    scores, base = column("normalized_score", "gfs", "large"), column("normalized_score", "baseline", "base")
    lost, own_lost = column("instability", "gfs", "large"), column("instability", "baseline", "large")
    assert len(scores) == len(base) == 15
    score, unit = trim_mean(scores, 0.25), trim_mean(base, 0.25)
    assert figures["normalized_score"]["value"] == pytest.approx(score, rel=1e-5)
    assert figures["ratio"]["value"] == pytest.approx(score / unit, rel=1e-5)
    gain = 1 - trim_mean(lost, 0.25) / trim_mean(own_lost, 0.25)
    assert figures["stability_gain"]["value"] == pytest.approx(gain, rel=1e-4)
    assert figures["optimality_gap"]["value"] == pytest.approx(1 - np.minimum(scores, 1).mean(), rel=1e-4)
    assert figures["ratio"]["strata"] == 3
    low, high = figures["ratio"]["interval"]
    assert low < score / unit < high
    # Each interquartile mean of 15 runs has a relative standard error of about 0.1 / sqrt(15) * 1.2.
    assert high - low == pytest.approx(2 * 1.96 * score / unit * math.sqrt(2) * 0.031, rel=0.5)


def test_tuned_and_held_out_tasks_are_told_apart() -> None:
    plan = study(tasks=["acrobot", "lander", "walker"])
    summary = summarize(plan, table(plan, TRUTH, noise=0.1), resamples=50)

    assert headline(summary, "gfs", name=TUNED)["ratio"]["strata"] == 1
    assert headline(summary, "gfs", name=HELD_OUT)["ratio"]["strata"] == 2
    tuned = headline(summary, "gfs", name=TUNED)
    alone = headline(summary, "gfs", name=STRATUM, stratum="acrobot")
    assert tuned["ratio"] == alone["ratio"]
    speeds = [
        headline(summary, "gfs", name=STRATUM, stratum=name) for name in ("acrobot", "lander", "walker")
    ]
    median = np.median([figures["speed_up"]["value"] for figures in speeds])
    assert headline(summary, "gfs")["speed_up"]["value"] == pytest.approx(median, rel=1e-5)


def test_a_failed_run_counts_as_the_floor() -> None:
    plan = study()
    known = table(
        plan, SPEED, statuses={"acrobot-large-gfs-seed_0": "failed", "acrobot-large-gfs-seed_3": "failed"}
    )
    summary = summarize(plan, known)
    learned = next(run.normalized_score for run in known.runs if run.cell == "acrobot-large-gfs-seed_1")
    figures = group(summary, "gfs")

    # Of 0, 0, s, s, s the lowest and the highest are left out.
    assert figures["normalized_score"]["value"] == pytest.approx(2 / 3 * learned, rel=1e-5)
    final = FLOOR + (REFERENCE - FLOOR) * learned
    assert figures["final_score"]["value"] == pytest.approx((FLOOR + 2 * final) / 3, rel=1e-5)
    assert figures["instability"]["value"] == pytest.approx(1 / 3, rel=1e-3)
    assert figures["finals"]["0"] is None
    assert figures["curve"]["score"][-1] == pytest.approx((FLOOR + 2 * final) / 3, rel=1e-2)
    assert summary["cells"] == {"planned": 15, "finished": 13, "failed": 2, "missing": 0}
    assert [row["cell"] for row in summary["failures"]] == [
        "acrobot-large-gfs-seed_0",
        "acrobot-large-gfs-seed_3",
    ]
    assert summary["failures"][0]["error"] == "ValueError: exploded"


def test_a_recipe_of_which_every_run_failed() -> None:
    plan = study()
    statuses = {cell.name: "failed" for cell in plan.cells() if cell.levels["recipe"] == "gfs"}
    figures = headline(summarize(plan, table(plan, SPEED, noise=0.1, statuses=statuses)), "gfs")

    assert figures["normalized_score"]["value"] == 0
    assert figures["ratio"]["value"] == 0
    assert figures["speed_up"]["value"] == 0
    assert set(figures["verdicts"].values()) == {"not met"}


def test_a_run_without_a_score_counts_as_failed() -> None:
    plan = study()
    known = with_runs(
        table(plan, SPEED),
        lambda run: run._replace(final_score=math.nan) if run.cell == "acrobot-large-gfs-seed_1" else run,
    )
    summary = summarize(plan, known, resamples=50)

    assert group(summary, "gfs")["failed"] == 1
    assert summary["failures"][0]["error"] == "finished without a score"


def test_runs_that_are_missing_are_left_out_and_told() -> None:
    plan = study()
    known = table(plan, SPEED, statuses={"acrobot-large-gfs-seed_4": "missing"})
    summary = summarize(plan, known, resamples=50)

    assert group(summary, "gfs")["seeds"] == 4
    assert group(summary, "gfs")["normalized_score"]["value"] == pytest.approx(1, rel=0.02)
    assert summary["failures"] == [
        {"cell": "acrobot-large-gfs-seed_4", "status": "missing", "error": "not run"}
    ]


def test_one_seed_has_no_interval() -> None:
    plan = study(seeds=1)
    figures = headline(summarize(plan, table(plan, TRUTH), resamples=50), "gfs")

    for name in ("normalized_score", "ratio", "speed_up"):
        assert figures[name]["value"] is not None
        assert (figures[name]["interval"], figures[name]["note"]) == (None, "one seed")
    # "Without loss" needs an interval, and there is none.
    assert figures["verdicts"]["ratio"] == "undefined"


def test_a_speed_over_a_small_baseline_of_one_seed_has_no_interval() -> None:
    plan = study()
    statuses = {f"acrobot-base-baseline-seed_{seed}": "missing" for seed in range(1, 5)}
    figures = headline(summarize(plan, table(plan, SPEED, statuses=statuses), resamples=50), "gfs")

    for name in ("speed_up_over_base", "speed_up_over_base_seconds", "speed_up_to_base_score"):
        assert (figures[name]["interval"], figures[name]["note"]) == (None, "one seed")
    assert figures["speed_up"]["interval"] is not None


def test_a_baseline_that_did_not_learn_has_no_speed() -> None:
    plan = study()
    known = table(plan, {**SPEED, ("baseline", "large"): (1.0, 0.01)})
    summary = summarize(plan, known, resamples=50)
    figures = headline(summary, "gfs")

    assert (figures["speed_up"]["value"], figures["speed_up"]["note"]) == (None, "baseline did not learn")
    assert figures["verdicts"]["speed_up"] == "undefined"
    assert figures["speed_up_over_base"]["value"] == pytest.approx(1.8, rel=0.05)
    assert group(summary, "gfs")["steps_to_reach"]["note"] == "baseline did not learn"


def test_a_large_baseline_that_did_not_learn_took_all_its_steps_to_the_small_ones_score() -> None:
    plan = study()
    learning = headline(summarize(plan, table(plan, SPEED), resamples=50), "gfs")
    known = table(plan, {**SPEED, ("baseline", "large"): (1.0, 0.01)})
    figures = headline(summarize(plan, known, resamples=50), "gfs")

    # Both baselines of this table learn alike, so their final scores are the same.
    assert learning["speed_up_to_base_score"] == learning["speed_up"]
    # Without noise, gfs needs the same steps to the same score as beside a baseline that learns.
    reached = group(summarize(plan, table(plan, SPEED), resamples=50), "gfs")["steps_to_reach"]["value"]
    assert figures["speed_up_to_base_score"]["value"] == pytest.approx(STEPS[-1] / reached, rel=1e-5)
    assert figures["speed_up_to_base_score"]["value"] > learning["speed_up"]["value"]


def test_a_recipe_that_never_reaches_the_small_baselines_score_has_speed_0() -> None:
    plan = study()
    known = table(plan, {**SPEED, ("baseline", "large"): (1.0, 0.01), ("gfs", "large"): (5.0, 0.8)})

    assert headline(summarize(plan, known, resamples=50), "gfs")["speed_up_to_base_score"]["value"] == 0


def test_a_recipe_that_never_gets_there_has_speed_0() -> None:
    plan = study()
    summary = summarize(plan, table(plan, {**SPEED, ("gfs", "large"): (5.0, 0.8)}))

    assert headline(summary, "gfs")["speed_up"]["value"] == 0
    assert headline(summary, "gfs")["speed_up"]["interval"] == [0, 0]
    assert group(summary, "gfs")["steps_to_reach"]["note"] == "never"


def test_no_ratio_to_a_baseline_at_the_floor() -> None:
    plan = study()
    figures = headline(summarize(plan, table(plan, {**SPEED, ("baseline", "base"): (1.0, 0.0)})), "gfs")

    assert (figures["ratio"]["value"], figures["ratio"]["note"]) == (None, "baseline at the floor")


def test_a_ratio_without_bound() -> None:
    plan = study()
    statuses = {f"acrobot-base-baseline-seed_{seed}": "failed" for seed in (0, 1)}
    figures = headline(summarize(plan, table(plan, SPEED, statuses=statuses)), "gfs")

    # Many resamples of the base's 0, 0, s, s, s have a mean of 0: the ratio has no upper end.
    assert figures["ratio"]["interval"][1] is None
    assert figures["ratio"]["interval"][0] > 0.9


def test_runs_that_never_rose_have_no_instability() -> None:
    plan = study()
    known = with_runs(
        table(plan, TRUTH, noise=0.1),
        lambda run: run._replace(instability=None) if run.levels["recipe"] == "gfs" else run,
    )
    summary = summarize(plan, known, resamples=50)

    assert headline(summary, "gfs")["stability_gain"]["note"] == "one of the two never learned"
    assert group(summary, "gfs")["instability"]["note"] == "never learned"
    assert group(summary, "gfs")["learned"] == 0


def test_a_stability_gain_is_at_most_1_where_some_resamples_have_none() -> None:
    plan = study()
    lost = {"gfs": 0.1, "baseline": 0.4}

    def steady(run: Run) -> Run:
        is_steady = run.levels["recipe"] == "baseline" and run.levels["seed"] in "01"
        return run._replace(instability=0.0 if is_steady else lost[run.levels["recipe"]])

    figures = headline(summarize(plan, with_runs(table(plan, SPEED), steady)), "gfs")

    # Many resamples of the baseline's 0, 0, l, l, l have a mean of 0, to which nothing can be compared.
    assert figures["stability_gain"]["interval"] == [None, 1.0]


def test_the_baseline_is_not_compared_with_itself() -> None:
    plan = study()
    summary = summarize(plan, table(plan, SPEED), resamples=50)

    assert headline(summary, "baseline")["stability_gain"]["value"] is None
    assert headline(summary, "baseline")["ratio"]["value"] == pytest.approx(1)
    assert headline(summary, "baseline", "base")["ratio"]["note"] == "the baseline itself"
    assert headline(summary, "baseline", "base")["verdicts"] == {}
    assert headline(summary, "baseline")["outcomes"] == {"wins": [], "ties": [], "losses": []}


def test_the_large_baseline_is_judged_beside_the_small_one() -> None:
    plan = study()
    steady = summarize(plan, table(plan, SPEED), resamples=50)
    falling = summarize(plan, table(plan, TRUTH, noise=0.1), resamples=50)

    assert headline(steady, "gfs")["verdicts"]["ratio"] == "met"
    assert headline(steady, "baseline")["verdicts"] == {"ratio": "met"}
    assert headline(falling, "baseline")["verdicts"] == {"ratio": "not met"}


def test_the_tuned_baseline_is_a_second_baseline() -> None:
    recipes = ["baseline", "baseline_tuned", "gfs"]
    skip = [{"scale": "base", "recipe": "gfs"}]
    compare = {"baseline": "baseline", "base_scale": "base", "tuned_on": ["acrobot"]}
    both = study(
        tasks=["acrobot", "lander"],
        recipes=recipes,
        skip=skip,
        compare={**compare, "tuned_baseline": "baseline_tuned"},
    )
    alone = study(
        tasks=["acrobot", "lander"],
        recipes=recipes,
        skip=skip,
        compare={**compare, "baseline": "baseline_tuned"},
    )
    truth = {**TRUTH, ("baseline_tuned", "base"): (1.2, 1.1), ("baseline_tuned", "large"): (1.3, 0.8)}
    known = table(both, truth, noise=0.1)
    summary, other = (summarize(plan, known, resamples=50) for plan in (both, alone))

    for name in (ALL, TUNED, HELD_OUT):
        row, expected = headline(summary, "gfs", name=name), headline(other, "gfs", name=name)
        assert row["tuned_baseline"]
        assert row["tuned_baseline"] == {key: expected[key] for key in row["tuned_baseline"]}
        assert row["ratio"] != expected["ratio"]
    tuned = headline(summary, "baseline_tuned")
    assert tuned["verdicts"]
    assert tuned["tuned_baseline"]["speed_up"]["note"] == "the baseline itself"
    assert "tuned_baseline" not in headline(other, "gfs")


def test_tasks_are_told_apart_by_whether_size_hurts() -> None:
    tasks = ["acrobot", "lander", "walker"]
    plan = study(tasks=tasks)
    known = table(plan, TRUTH)
    lower = {"acrobot": 0.1, "lander": 0.0, "walker": -0.1}

    def base(run: Run) -> Run:
        if run.levels["recipe"] != "baseline":
            return run
        score = 0.5 + (lower[run.levels["task"]] if run.levels["scale"] == "base" else 0.0)
        return run._replace(normalized_score=score)

    summary = summarize(plan, with_runs(known, base), resamples=50)

    # A tie does not hurt.
    sets = {
        "size hurts": ["acrobot"],
        "size hurts, tuned tasks": ["acrobot"],
        "size does not hurt": ["lander", "walker"],
        "size does not hurt, held-out tasks": ["lander", "walker"],
    }
    for name, members in sets.items():
        assert headline(summary, "gfs", name=name)["tasks"] == members
    names = {row["set"] for row in summary["aggregates"] if "hurt" in row["set"]}
    assert names == set(sets)
    assert not any("hurt" in row["set"] and row["scale"] == "base" for row in summary["aggregates"])
    assert [stratum["size_hurts"] for stratum in summary["strata"]] == [
        {"base": None, "large": hurts} for hurts in (True, False, False)
    ]
    alone = headline(summary, "gfs", name=STRATUM, stratum="acrobot")
    assert headline(summary, "gfs", name="size hurts")["stability_gain"] == alone["stability_gain"]


def test_a_task_without_the_large_baseline_is_in_neither_set() -> None:
    plan = study(skip=[{"recipe": "baseline", "scale": "large"}, {"recipe": "gfs", "scale": "base"}])
    summary = summarize(plan, table(plan, TRUTH), resamples=50)

    assert summary["strata"][0]["size_hurts"] == {"base": None, "large": None}
    assert not any("hurt" in row["set"] for row in summary["aggregates"])


@pytest.mark.parametrize(
    ("height", "verdict"), [(0.90, "not met"), (0.96, "met by the estimate alone"), (1.1, "met")]
)
def test_ratio_at_the_same_scale(height: float, verdict: str) -> None:
    plan = study(seeds=10)
    known = table(plan, {**TRUTH, ("baseline", "large"): (1.0, 1.0), ("gfs", "large"): (1.0, height)})
    spread = {str(seed): (seed - 4.5) / 50 for seed in range(10)}

    def spreading(run: Run) -> Run:
        assert run.normalized_score is not None
        return run._replace(normalized_score=run.normalized_score + spread[run.levels["seed"]])

    figures = headline(summarize(plan, with_runs(known, spreading)), "gfs")

    assert figures["ratio_at_scale"]["value"] == pytest.approx(height, abs=0.01)
    assert figures["verdicts"]["ratio_at_scale"] == verdict


def test_what_was_skipped_is_left_out() -> None:
    skip = [
        {"scale": "base", "recipe": "gfs"},
        {"task": "lander", "scale": "base"},
        {"task": "walker", "scale": "large", "recipe": "gfs"},
    ]
    plan = study(tasks=["acrobot", "lander", "walker"], skip=skip)
    summary = summarize(plan, table(plan, SPEED), resamples=50)
    over_all = headline(summary, "gfs")

    assert over_all["ratio"]["strata"] == 1
    assert over_all["speed_up"]["strata"] == 2
    lander = headline(summary, "gfs", name=STRATUM, stratum="lander")
    assert lander["ratio"]["note"] == "no baseline at base"
    assert not any(row["recipe"] == "gfs" and row["stratum"] == "walker" for row in summary["groups"])


def test_strata_are_tasks_and_all_other_factors() -> None:
    factors = {
        "task": {"acrobot": {"floor": FLOOR, "reference": REFERENCE}},
        "network": {"plain": {}, "residual": {}},
        "scale": {"base": {}, "large": {}},
        "recipe": {"baseline": {}, "gfs": {}},
        "seed": [0, 1],
    }
    plan = study(factors=factors)
    summary = summarize(plan, table(plan, SPEED), resamples=50)

    assert [stratum["name"] for stratum in summary["strata"]] == ["acrobot / plain", "acrobot / residual"]
    assert headline(summary, "gfs")["ratio"]["strata"] == 2


def test_floor_of_a_game_follows_from_its_runs() -> None:
    factors = {
        "task": {"pong": {}},
        "scale": {"base": {}, "large": {}},
        "recipe": {"baseline": {}, "gfs": {}},
        "seed": [0, 1, 2, 3, 4],
    }
    compare = {"baseline": "baseline", "base_scale": "base", "tuned_on": []}
    plan = study(factors=factors, compare=compare)
    known = table(plan, TRUTH, noise=0.05, statuses={"pong-large-gfs-seed_0": "failed"})
    scores = [
        run.final_score for run in known.runs if "large-gfs" in run.cell and run.final_score is not None
    ]

    expected = trim_mean([FLOOR, *scores], 0.25)
    assert group(summarize(plan, known, resamples=50), "gfs")["final_score"]["value"] == pytest.approx(
        expected
    )


def test_verdicts() -> None:
    plan = study()
    rises = {
        ("baseline", "base"): (1.0, 1.0),
        ("baseline", "large"): (1.0, 0.9),
        ("gfs", "large"): (2.5, 1.2),
    }
    known = table(plan, rises, noise=0.02)

    def steady(run: Run) -> Run:
        return run._replace(instability=0.05 if run.levels["recipe"] == "gfs" else 0.4)

    verdicts = headline(summarize(plan, with_runs(known, steady)), "gfs")["verdicts"]
    assert verdicts == {"ratio": "met", "ratio_at_scale": "met", "stability_gain": "met", "speed_up": "met"}

    def shaky(run: Run) -> Run:
        values = {"0": 0.0, "1": 0.1, "2": 0.1, "3": 0.2, "4": 0.6}
        return run._replace(instability=values[run.levels["seed"]] if run.levels["recipe"] == "gfs" else 0.4)

    verdicts = headline(summarize(plan, with_runs(known, shaky)), "gfs")["verdicts"]
    assert verdicts["stability_gain"] == "met by the estimate alone"


def test_summary_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    plan = study(tasks=["acrobot", "lander"])
    known = table(plan, TRUTH, noise=0.1)
    first = write_summary(tmp_path, summarize(plan, known)).read_bytes()
    second = write_summary(tmp_path, summarize(plan, known)).read_bytes()

    assert first == second
    assert json.loads(first)["resamples"] == 2_000
    assert not list(tmp_path.glob("*.tmp"))


def test_other_recipes_do_not_change_a_recipes_interval() -> None:
    alone, both = study(), study(recipes=["baseline", "clip", "gfs"])
    known = table(both, {**TRUTH, ("clip", "large"): (1.0, 1.0)}, noise=0.1)
    fewer = known._replace(runs=[run for run in known.runs if run.levels["recipe"] != "clip"])

    assert headline(summarize(both, known), "gfs") == headline(summarize(alone, fewer), "gfs")


def test_curve_against_wall_time_and_steps() -> None:
    plan = study()
    figures = group(summarize(plan, table(plan, SPEED)), "gfs")

    assert figures["curve"]["x"] == STEPS
    np.testing.assert_allclose(figures["curve_seconds"]["x"], np.array(STEPS) * SECONDS_PER_STEP)
    assert figures["curve"]["score"] == pytest.approx(figures["curve_seconds"]["score"])
    assert figures["parameters"] == 60_000
    assert figures["wall_seconds"] == 80
    assert figures["cpu_seconds"] == 120


def test_instability_is_that_of_the_runs() -> None:
    plan = study()
    known = table(plan, TRUTH, noise=0.1)
    values = [instability(known.curves[f"acrobot-large-gfs-seed_{seed}", TAG].values) for seed in range(5)]

    figures = group(summarize(plan, known, resamples=50), "gfs")
    assert figures["instability"]["value"] == pytest.approx(trim_mean(values, 0.25), rel=1e-5)


def test_a_whole_number_as_floor_does_not_round_curves() -> None:
    curve = group_curve([([1, 2], [0.25, 0.75]), None], draw(2, 3, np.random.default_rng(0)), lowest=0)

    assert curve is not None
    assert curve.values[0].tolist() == [0.125, 0.25]
