"""An outsider gets the figures by size from the CSV files, by docs/statistics.md and NumPy alone."""

from __future__ import annotations

import csv
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lit_gfs.study.planning.plan import Study
from lit_gfs.study.results.summary import summarize, write_summary
from lit_gfs.study.results.table import FAILED, MISSING, Curve, Run, Table, write_table
from support.synthetic_study import FLOOR, REFERENCE, STEPS, TAG, Truth, study, table

Floats = NDArray[np.float64]

SCALES = {"4x8": 4, "8x8": 8, "16x8": 16}
RECIPES = ["baseline", "baseline_tuned", "gfs"]
TASKS = ["falls", "rises", "walker"]
HELD_OUT = ["rises", "walker"]


def heights(task: str) -> Truth:
    """Size hurts on two tasks, on one of them only at the largest scale."""
    large = {"falls": (0.8, 0.3), "rises": (1.2, 1.3), "walker": (1.2, 0.6)}[task]
    own = dict(zip(SCALES, (1.0, *large), strict=True))
    return {
        **{("baseline", scale): (1.0, height) for scale, height in own.items()},
        **{("baseline_tuned", scale): (1.2, height**0.5) for scale, height in own.items()},
        **{("gfs", scale): (2.0, 1.05) for scale in SCALES},
    }


def plan() -> Study:
    return study(
        factors={
            "task": {task: {"floor": FLOOR, "reference": REFERENCE} for task in TASKS},
            "scale": {
                name: {"options": {"model.trunk.depth": depth, "model.trunk.width": 8}}
                for name, depth in SCALES.items()
            },
            "recipe": {recipe: {} for recipe in RECIPES},
            "seed": list(range(6)),
        },
        compare={
            "baseline": "baseline",
            "tuned_baseline": "baseline_tuned",
            "base_scale": "4x8",
            "tuned_on": ["falls"],
        },
        skip=[{"task": "rises", "scale": "16x8", "recipe": "gfs"}],
    )


def tables() -> Table:
    """Results with a failed run, a missing run, and runs that never rose above the floor."""
    statuses = {"falls-8x8-gfs-seed_1": FAILED, "walker-16x8-baseline-seed_2": MISSING}
    flat = {f"{task}-16x8-baseline-seed_{seed}" for task in ("falls", "walker") for seed in (0, 3)}
    whole = {task: table(plan(), heights(task), noise=0.1, statuses=statuses) for task in TASKS}
    runs = [run for task in TASKS for run in whole[task].runs if run.levels["task"] == task]
    curves = {run.cell: whole[run.levels["task"]].curves.get((run.cell, TAG)) for run in runs}

    def stuck(run: Run) -> Run:
        return run._replace(final_score=FLOOR, normalized_score=0.0, instability=None)

    return Table(
        [stuck(run) if run.cell in flat else run for run in runs],
        {
            (cell, TAG): Curve(curve.steps, curve.seconds, [FLOOR] * len(STEPS)) if cell in flat else curve
            for cell, curve in curves.items()
            if curve is not None
        },
        {},
    )


def iqm(samples: list[Floats]) -> Floats:
    ordered = np.sort(np.concatenate(samples, axis=1), axis=1)
    cut = ordered.shape[1] // 4
    return ordered[:, cut : ordered.shape[1] - cut].mean(1)


class Outsider:
    """Reads the CSV files of a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runs = self.rows("runs.csv")
        self.curves: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows("curves.csv"):
            self.curves.setdefault(row["cell"], []).append((float(row["step"]), float(row["value"])))

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.directory / name).open(newline="") as file:
            return list(csv.DictReader(file))

    def group(self, task: str, scale: str, recipe: str) -> tuple[Floats, Floats | None, Floats]:
        """Return resamples of normalized scores, of instabilities, and of the IQM curve."""
        wanted = (task, scale, recipe)
        runs = [run for run in self.runs if (run["task"], run["scale"], run["recipe"]) == wanted]
        runs = [run for run in runs if run["status"] != "missing"]
        generator = np.random.default_rng([0, zlib.crc32("\n".join(wanted).encode())])

        def draws(count: int) -> Any:
            return np.concatenate([np.arange(count)[None], generator.integers(0, count, (2_000, count))])

        drawn = draws(len(runs))
        scores = np.array([float(run["normalized_score"] or 0) for run in runs])[drawn]
        lost = ["1" if run["status"] == "failed" else run["instability"] for run in runs]
        known = np.array([float(text) for text in lost if text])
        lines = np.full((len(runs), len(STEPS)), FLOOR)
        for line, run in zip(lines, runs, strict=True):
            if run["status"] == "finished":
                values = [value for _, value in self.curves[run["cell"]]]
                line[:] = [np.mean(values[max(0, end - 3) : end]) for end in range(1, len(values) + 1)]
        curve = np.stack([iqm([lines[:, point][drawn]]) for point in range(len(STEPS))], axis=1)
        return scores, known[draws(len(known))] if known.size else None, curve

    def size_hurts(self, task: str, scale: str) -> bool:
        at_scale, at_base = (iqm([self.group(task, s, "baseline")[0][:1]])[0] for s in (scale, "4x8"))
        return bool(at_scale < at_base)

    def figures(self, tasks: list[str], scale: str, recipe: str, baseline: str) -> dict[str, list[float]]:
        ours = [self.group(task, scale, recipe) for task in tasks]
        own = [self.group(task, scale, baseline) for task in tasks]
        base = [self.group(task, "4x8", baseline) for task in tasks]
        score = iqm([scores for scores, *_ in ours])
        pairs = [(a[0][:, :, None], b[0][:, None, :]) for a, b in zip(ours, own, strict=True)]
        better = [((a > b) + (a == b) / 2).mean((1, 2)) for a, b in pairs]
        lost, own_lost = (iqm([each for _, each, _ in side if each is not None]) for side in (ours, own))
        # Where a resampled baseline is at the floor, a ratio has no bound.
        np.seterr(divide="ignore")
        return {
            "ratio": interval(score / iqm([scores for scores, *_ in base])),
            "score_difference": interval(score - iqm([scores for scores, *_ in own])),
            "ratio_at_scale": interval(score / iqm([scores for scores, *_ in own])),
            "stability_gain": interval(1 - lost / own_lost),
            "probability_of_improvement": interval(np.mean(better, axis=0)),
            "speed_up": speed_up([each[2] for each in ours], [each[2] for each in own]),
        }


def interval(values: Floats, worst: float = -np.inf, best: float = np.inf) -> list[float]:
    low, high = (np.where(np.isnan(values[1:]), end, values[1:]) for end in (worst, best))
    ends = [np.quantile(low, 0.025, method="lower"), np.quantile(high, 0.975, method="higher")]
    return [float(values[0]), *map(float, ends)]


def speed_up(ours: list[Floats], own: list[Floats]) -> list[float]:
    steps = np.array(STEPS, dtype=float)

    def needed(curve: Floats, target: float) -> float:
        above = np.flatnonzero(curve >= target - 1e-9 * max(1, abs(target)))
        if not above.size:
            return np.inf
        first = above[0]
        if first == 0:
            return float(steps[0])
        share = (target - curve[first - 1]) / (curve[first] - curve[first - 1])
        return float(steps[first - 1] + share * (steps[first] - steps[first - 1]))

    factors = []
    for mine, theirs in zip(ours, own, strict=True):
        targets = theirs[:, steps > 0.9 * steps[-1]].mean(1)
        learned = targets - np.maximum(theirs[:, 0], FLOOR) >= 0.05 * (REFERENCE - FLOOR)
        rows = zip(mine, theirs, targets, strict=True)
        ratios = np.array([needed(b, target) / needed(a, target) for a, b, target in rows])
        factors.append(np.where(learned, ratios, np.nan))
    defined = [each for each in factors if not np.isnan(each[0])]
    return interval(np.median(defined, axis=0), worst=0.0)


def test_figures_by_size_and_against_both_baselines(tmp_path: Path) -> None:
    write_table(tmp_path, tables())
    write_summary(tmp_path, summarize(plan(), tables()))
    summary = json.loads((tmp_path / "summary.json").read_text())
    outsider = Outsider(tmp_path)
    hurts = {scale: [task for task in TASKS if outsider.size_hurts(task, scale)] for scale in SCALES}
    assert hurts == {"4x8": [], "8x8": ["falls"], "16x8": ["falls", "walker"]}
    sets = {
        "size hurts": lambda scale: hurts[scale],
        "size hurts, tuned tasks": lambda scale: ["falls"],
        "size hurts, held-out tasks": lambda scale: [task for task in hurts[scale] if task in HELD_OUT],
        "size does not hurt": lambda scale: [task for task in TASKS if task not in hurts[scale]],
    }
    compared = 0
    for row in summary["aggregates"]:
        if row["set"] not in sets or row["recipe"] == "baseline":
            continue
        tasks = sets[row["set"]](row["scale"])
        assert row["tasks"] == tasks
        for committed, baseline in ((row, "baseline"), (row["tuned_baseline"], "baseline_tuned")):
            if row["recipe"] == baseline:
                continue
            for name, (value, *ends) in outsider.figures(
                tasks, row["scale"], row["recipe"], baseline
            ).items():
                expected = [None if np.isinf(end) else pytest.approx(end, rel=1e-5, abs=1e-9) for end in ends]
                assert committed[name]["value"] == pytest.approx(value, rel=1e-5), (row["set"], name)
                assert committed[name]["interval"] == expected, (row["set"], name)
                compared += 1
    # gfs against two baselines and the tuned baseline against one: in three sets at 8x8, and in four at 16x8.
    # At 16x8, gfs did not run on the task where size does not hurt.
    assert compared == 6 * (3 * 3 + 4 * 3 - 2)


def test_the_largest_network_without_loss(tmp_path: Path) -> None:
    write_table(tmp_path, tables())
    (ladder,) = summarize(plan(), tables())["ladders"]
    outsider = Outsider(tmp_path)

    for entry in ladder["largest_without_loss"]:
        task, recipe = entry["stratum"], entry["recipe"]
        by_estimate = by_interval = None
        for scale in SCALES:
            if (task, scale, recipe) == ("rises", "16x8", "gfs"):
                continue  # not run
            base = iqm([outsider.group(task, "4x8", "baseline")[0]])
            value, low, _ = interval(iqm([outsider.group(task, scale, recipe)[0]]) / base)
            is_itself = (scale, recipe) == ("4x8", "baseline")
            by_estimate = scale if value >= 1 or is_itself else by_estimate
            by_interval = scale if low >= 0.95 or is_itself else by_interval
        assert (entry["by_estimate"], entry["by_interval"]) == (by_estimate, by_interval)
    assert len(ladder["largest_without_loss"]) == len(TASKS) * len(RECIPES)
    assert len({entry["by_interval"] for entry in ladder["largest_without_loss"]}) > 1
