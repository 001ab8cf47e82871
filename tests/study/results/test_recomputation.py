"""A study's committed figures follow from its tables by the words of docs/statistics.md, without lit_gfs."""

from __future__ import annotations

import csv
import functools
import json
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import trim_mean

Floats = NDArray[np.float64]

STUDY = Path(__file__).resolve().parents[3] / "docs/results/control"
RESAMPLES, SEED, SHARE, MOST_POINTS = 2_000, 0, 0.1, 100
ENDS = {"acrobot": (-500, -80), "cartpole": (9, 500)}


@functools.cache
def rows(name: str) -> list[dict[str, str]]:
    with (STUDY / name).open(newline="") as file:
        return list(csv.DictReader(file))


def runs_of_the_study() -> list[dict[str, str]]:
    """Return the runs that were run; the study is not complete."""
    return [run for run in rows("runs.csv") if run["status"] != "missing"]


def tasks_run() -> list[str]:
    """Return the tasks with runs of the recipe, in the order of the table."""
    return list(dict.fromkeys(run["task"] for run in runs_of_the_study() if run["recipe"] == "gfs"))


def ends(task: str) -> tuple[float, float]:
    """Return floor and reference of a task, as in the study's configuration."""
    return next((ends for name, ends in ENDS.items() if task.endswith(name)), (0, 1000))


def smoothed(scores: list[float] | Floats) -> Floats:
    return np.array([np.mean(scores[max(0, end - 3) : end]) for end in range(1, len(scores) + 1)])


class Group:
    """Runs of one recipe at one size on one task, with their resamples; row 0 is the sample itself."""

    def __init__(self, task: str, scale: str, recipe: str) -> None:
        self.floor, self.reference = ends(task)
        wanted = (task, scale, recipe)
        self.runs = [
            run for run in runs_of_the_study() if (run["task"], run["scale"], run["recipe"]) == wanted
        ]
        self.generator = np.random.default_rng([SEED, zlib.crc32("\n".join(wanted).encode())])
        self.drawn = self.draw(len(self.runs))
        scores = np.array([float(run["final_score"]) for run in self.runs])
        self.scores = ((scores - self.floor) / (self.reference - self.floor))[self.drawn]
        # Runs without an instability are left out first: what is drawn from are the others.
        known = np.array([float(run["instability"]) for run in self.runs if run["instability"]])
        self.lost = known[self.draw(len(known))]
        self.curves: dict[str, tuple[list[float], list[float], list[float]]] = defaultdict(
            lambda: ([], [], [])
        )
        cells = {run["cell"] for run in self.runs}
        for row in rows("curves.csv"):
            if row["cell"] in cells and row["tag"] == "eval/episode_return":
                for column, name in zip(self.curves[row["cell"]], ("step", "seconds", "value"), strict=True):
                    column.append(float(row[name]))

    def draw(self, count: int) -> NDArray[np.int64]:
        drawn = self.generator.integers(0, count, size=(RESAMPLES, count))
        return np.concatenate([np.arange(count)[None], drawn])

    def curve(self, axis: int) -> tuple[Floats, Floats]:
        """Return where any run was evaluated, by steps (0) or seconds (1), and the IQM over runs there."""
        runs = [self.curves[run["cell"]] for run in self.runs]
        x = np.array(sorted({point for run in runs for point in run[axis]}))
        if len(x) > MOST_POINTS:
            x = x[np.round(np.linspace(0, len(x) - 1, MOST_POINTS)).astype(int)]
        lines = np.stack([np.interp(x, run[axis], smoothed(run[2])) for run in runs])
        return x, trim_mean(lines[self.drawn], 0.25, axis=1)


group = functools.cache(Group)


def needed(x: Floats, curves: Floats, thresholds: Floats) -> Floats:
    found = []
    for curve, threshold in zip(curves, thresholds, strict=True):
        above = np.flatnonzero(curve >= threshold - 1e-9 * max(1, abs(threshold)))
        if not above.size:
            found.append(np.inf)
        elif above[0] == 0:
            found.append(x[0])
        else:
            before, after = curve[above[0] - 1], curve[above[0]]
            share = (threshold - before) / (after - before)
            found.append(x[above[0] - 1] + share * (x[above[0]] - x[above[0] - 1]))
    return np.array(found)


def interval(values: Floats, worst: float = -np.inf, best: float = np.inf) -> list[float]:
    resamples = values[1:]
    unknown = np.isnan(resamples)
    low = np.quantile(np.where(unknown, worst, resamples), 0.025, method="lower")
    high = np.quantile(np.where(unknown, best, resamples), 0.975, method="higher")
    return [values[0], low, high]


def speed_up(recipe: Group, baseline: Group, axis: int) -> Floats:
    steps, curves = baseline.curve(0)
    target = curves[:, steps > (1 - SHARE) * steps[-1]].mean(1)
    start = np.maximum(curves[:, 0], baseline.floor)
    learned = target - start >= 0.05 * (baseline.reference - baseline.floor)
    x, own = baseline.curve(axis)
    target = np.minimum(target, own.max(1))
    factors = needed(x, own, target) / needed(*recipe.curve(axis), target)
    return np.where(learned, factors, np.nan)


def speed_up_to_base_score(recipe: Group, own: Group, base: Group) -> Floats:
    steps, curves = base.curve(0)
    target = curves[:, steps > (1 - SHARE) * steps[-1]].mean(1)
    learned = target - np.maximum(curves[:, 0], base.floor) >= 0.05 * (base.reference - base.floor)
    x, own_curves = own.curve(0)
    # A large baseline that never gets there counts as if its last step did.
    factors = np.minimum(needed(x, own_curves, target), x[-1]) / needed(*recipe.curve(0), target)
    return np.where(learned, factors, np.nan)


def iqm(samples: list[Floats]) -> Floats:
    return trim_mean(np.concatenate(samples, axis=1), 0.25, axis=1)


def stability_gain(ours: list[Floats], own: list[Floats]) -> list[float]:
    unit = iqm(own)
    # Where the baseline lost nothing, a gain is not defined.
    return interval(1 - iqm(ours) / np.where(unit > 0, unit, np.nan), best=1)


def recomputed(tasks: list[str]) -> dict[str, list[float]]:
    groups = [
        [group(task, *key) for task in tasks]
        for key in (("12x96", "gfs"), ("12x96", "baseline"), ("3x32", "baseline"))
    ]
    ours, own, base = groups
    figures = {
        "ratio": interval(iqm([g.scores for g in ours]) / iqm([g.scores for g in base])),
        "compared_score": interval(iqm([g.scores for g in ours])),
        "score_difference": interval(iqm([g.scores for g in ours]) - iqm([g.scores for g in own])),
        "stability_gain": stability_gain([g.lost for g in ours], [g.lost for g in own]),
    }
    all_factors = {
        name: [speed_up(*pair, axis) for pair in zip(ours, own, strict=True)]
        for axis, name in enumerate(("speed_up", "speed_up_seconds"))
    }
    threes = zip(ours, own, base, strict=True)
    all_factors["speed_up_to_base_score"] = [speed_up_to_base_score(*three) for three in threes]
    for name, factors in all_factors.items():
        # Tasks on which the baseline that sets the score did not learn do not count.
        defined = [each for each in factors if not np.isnan(each[0])]
        if defined:
            figures[name] = interval(np.median(defined, axis=0), worst=0)
    return figures


@pytest.mark.parametrize(
    ("name", "stratum"),
    [("stratum", "dqn_acrobot"), ("stratum", "pqn_acrobot"), ("stratum", "dqn_cartpole"), ("all tasks", "")],
)
def test_figures_of_the_control_study(name: str, stratum: str) -> None:
    tasks = [stratum] if stratum else tasks_run()
    summary = json.loads((STUDY / "summary.json").read_text())
    wanted = (name, stratum, "12x96", "gfs")
    (committed,) = [
        row
        for row in summary["aggregates"]
        if (row["set"], row["stratum"], row["scale"], row["recipe"]) == wanted
    ]

    for figure, (value, *bounds) in recomputed(tasks).items():
        # An end without a bound is null.
        expected = [None if np.isinf(end) else pytest.approx(end, rel=1e-5, abs=1e-9) for end in bounds]
        assert committed[figure]["value"] == pytest.approx(value, rel=1e-5), figure
        assert committed[figure]["interval"] == expected, figure


def test_wins_ties_and_losses_of_the_control_study() -> None:
    summary = json.loads((STUDY / "summary.json").read_text())
    counted = 0
    for committed in summary["aggregates"]:
        if committed["set"] != "all tasks" or committed["recipe"] == "baseline":
            continue
        scale, recipe = committed["scale"], committed["recipe"]
        expected: dict[str, list[str]] = {"wins": [], "ties": [], "losses": []}
        for task in committed["tasks"]:
            ours, own = group(task, scale, recipe), group(task, scale, "baseline")
            if min(len(ours.runs), len(own.runs)) < 2:
                continue  # a single run has no interval, so it neither wins nor loses
            _, low, high = interval(iqm([ours.scores]) - iqm([own.scores]))
            expected["wins" if low > 0 else "losses" if high < 0 else "ties"].append(task)
        assert committed["outcomes"] == expected, (scale, recipe)
        counted += len(expected["wins"] + expected["ties"] + expected["losses"])
    assert counted > 20


def test_final_scores_and_instabilities_follow_from_the_curves() -> None:
    curves = defaultdict(list)
    for row in rows("curves.csv"):
        curves[row["cell"]].append((float(row["step"]), float(row["value"])))
    unstable = 0
    for run in runs_of_the_study():
        steps, scores = map(np.array, zip(*curves[run["cell"]], strict=True))
        assert float(run["final_score"]) == pytest.approx(scores[steps > 0.9 * steps[-1]].mean())
        start = ends(run["task"])[0]
        curve = smoothed(scores)
        best = np.maximum(np.maximum.accumulate(curve), start)
        if best[-1] == start:
            assert run["instability"] == ""
            continue
        lost = np.divide(best - curve, best - start, out=np.zeros(len(curve)), where=best > start)
        assert float(run["instability"]) == pytest.approx(np.minimum(lost, 1).mean(), abs=1e-9)
        unstable += 1
    assert 0 < unstable < len(runs_of_the_study())


def test_intervals_would_differ_if_runs_were_left_out_after_the_draw() -> None:
    ours, own = (group("dqn_acrobot", "12x96", recipe) for recipe in ("gfs", "baseline"))

    def figures(runs: Group) -> Floats:
        values = np.array([float(run["instability"] or "nan") for run in runs.runs])
        kept = [resample[~np.isnan(resample)] for resample in values[runs.drawn]]
        return np.array([trim_mean(each, 0.25) if each.size else np.nan for each in kept])

    _, low, high = interval(1 - figures(ours) / figures(own), best=1)

    page = (STUDY.parents[1] / "statistics.md").read_text()
    _, *own_ends = recomputed(["dqn_acrobot"])["stability_gain"]
    for ends_of_interval in ((low, high), own_ends):
        # Adding 0 turns a rounded -0 into 0.
        shown = ", ".join(f"{round(end, 2) + 0:.0%}" for end in ends_of_interval)
        assert f"[{shown}]" in page
