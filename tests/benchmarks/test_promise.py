"""README's picture shows the committed runs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

TABLES = Path(__file__).resolve().parents[2] / "docs/results/control"


def interquartile_mean_of_last_evaluations(task: str, scale: str, recipe: str) -> float:
    curves: dict[str, list[float]] = {}
    with (TABLES / "curves.csv").open() as file:
        for row in csv.DictReader(file):
            if row["cell"].startswith(f"{task}-{scale}-{recipe}-seed"):
                curves.setdefault(row["cell"], []).append(float(row["value"]))
    lasts = sorted(np.mean(curve[-3:]) for curve in curves.values())
    cut = len(lasts) // 4
    return float(np.mean(lasts[cut : len(lasts) - cut]))


def test_curves_end_where_the_tables_end() -> None:
    from promise import NETWORKS, draw

    panels = {axis.get_title().partition(" (")[0]: axis for axis in draw(TABLES).axes}

    assert len(panels) == 6
    for title, task in {"DQN on Acrobot": "dqn_acrobot", "PQN on swing-up": "pqn_swingup"}.items():
        lines = panels[title].get_lines()
        assert [line.get_label() for line in lines] == [network.label for network in NETWORKS]
        for line, network in zip(lines, NETWORKS, strict=True):
            expected = interquartile_mean_of_last_evaluations(task, network.scale, network.recipe)
            np.testing.assert_allclose(np.asarray(line.get_ydata())[-1], expected)
