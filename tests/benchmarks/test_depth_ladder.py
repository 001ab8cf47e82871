"""The picture of returns by depth shows the committed runs."""

from __future__ import annotations

import csv
from pathlib import Path

TABLES = Path(__file__).resolve().parents[2] / "docs/results/depth"


def test_dots_are_the_runs_of_every_depth() -> None:
    from depth_ladder import TITLES, draw

    with (TABLES / "runs.csv").open() as file:
        runs = [run for run in csv.DictReader(file) if run["status"] == "finished"]
    figure = draw(TABLES)

    for axis, task in zip(figure.axes, TITLES, strict=True):
        dots = [
            (int(x), float(y))
            for line in axis.get_lines()
            if line.get_marker() == "o"
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        ]
        expected = [
            (int(run["scale"].partition("x")[0]), float(run["final_score"]))
            for run in runs
            if run["task"] == task
            and run["scale"] in {"4x96", "8x96", "16x96", "32x96", "64x96"}
            and run["recipe"] in {"baseline", "gradient_spectrum", "gfs"}
        ]
        assert sorted(dots) == sorted(expected)
        assert {depth for depth, _ in dots} == {4, 8, 16, 32, 64}
