"""Draw README's picture from the committed tables of studies/control: a panel per task, a curve per network.

    python benchmarks/promise.py --output docs/results/promise.png

A curve is the interquartile mean over all seeds, of evaluations averaged with the two before; its band is the
95% bootstrap interval. docs/statistics.md defines both.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from lit_gfs.study.planning.plan import read_study
from lit_gfs.study.results.groups import Stratum, read_stratum
from lit_gfs.study.results.table import read_table

RESAMPLES = 2_000


class Network(NamedTuple):
    """A network of the study, and its look."""

    scale: str
    recipe: str
    label: str
    colour: str
    line: str


# Okabe & Ito's palette: safe for colour-blind readers.
NETWORKS = (
    Network("3x32", "baseline", "3 layers of 32 units", "#3d3d3d", "--"),
    Network("12x96", "baseline", "12 layers of 96 units", "#d55e00", "-"),
    Network("12x96", "gfs", "12 layers of 96 units with recipes/gfs", "#0072b2", "-"),
)
TITLES = {
    "pqn_acrobot": "PQN on Acrobot",
    "dqn_acrobot": "DQN on Acrobot",
    "pqn_cartpole": "PQN on CartPole",
    "dqn_cartpole": "DQN on CartPole",
    "pqn_swingup": "PQN on swing-up",
    "dqn_swingup": "DQN on swing-up",
}


def draw_panel(axis: Axes, stratum: Stratum) -> None:
    """Draw the curves of one task."""
    for network in NETWORKS:
        group = stratum.groups[network.scale, network.recipe]
        curve = group.by_steps
        if curve is None:
            continue
        low, high = np.quantile(curve.values[1:], [0.025, 0.975], axis=0)
        axis.fill_between(curve.x, low, high, color=network.colour, alpha=0.15, linewidth=0)
        axis.plot(curve.x, curve.values[0], network.line, color=network.colour, label=network.label)
    seeds = len(group.runs)
    held_out = "" if stratum.tuned else ", held out"
    axis.set_title(f"{TITLES[stratum.name]} ({seeds} seeds{held_out})", fontsize=10)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)


def draw(tables: Path) -> Figure:
    """Draw the figure from a study's directory of tables."""
    study = read_study(yaml.safe_load((tables / "study.yaml").read_text()))
    table = read_table(tables)
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    rows = figure.subplots(2, 3)
    # Acrobot and CartPole stand below each other, the held-out tasks in the last column.
    order = ["pqn_acrobot", "pqn_cartpole", "pqn_swingup", "dqn_acrobot", "dqn_cartpole", "dqn_swingup"]
    for axis, name in zip(rows.flat, order, strict=True):
        draw_panel(axis, read_stratum(study, table, name, RESAMPLES, seed=0))
    figure.supxlabel("environment steps", fontsize=10)
    figure.supylabel("evaluation return", fontsize=10)
    handles, labels = rows[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def main() -> None:
    """Read the tables and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tables", type=Path, default=Path("docs/results/control"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/promise.png"))
    arguments = parser.parse_args()
    draw(arguments.tables).savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main()
