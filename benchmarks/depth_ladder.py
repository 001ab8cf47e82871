"""Draw final returns by depth from the committed tables of studies/depth: a panel per task, a line a recipe.

    python benchmarks/depth_ladder.py --output docs/results/depth.png

A dot is a run; a line connects the interquartile means of the runs of each depth. All networks have 96 units
a layer. The dashed line is the interquartile mean of the small baseline, 3 layers of 32 units.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import trim_mean

WIDTH = 96
TITLES = {"pqn_acrobot": "PQN on Acrobot", "pqn_cartpole": "PQN on CartPole"}
"""The tasks that have runs at every depth."""
# Okabe & Ito's palette: safe for colour-blind readers.
COLOURS = {"baseline": "#d55e00", "gradient_spectrum": "#0072b2", "gfs": "#009e73"}
LABELS = {
    "baseline": "baseline",
    "gradient_spectrum": "the spectrum of each gradient",
    "gfs": "recipes/gfs",
}


def read_scores(tables: Path) -> dict[tuple[str, str, str], list[float]]:
    """Return the scores of finished runs by task, scale and recipe."""
    scores: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with (tables / "runs.csv").open() as file:
        for run in csv.DictReader(file):
            if run["status"] == "finished":
                scores[run["task"], run["scale"], run["recipe"]].append(float(run["final_score"]))
    return scores


def interquartile_mean(scores: list[float]) -> float:
    """Return the mean of the middle half."""
    return float(trim_mean(scores, 0.25))


def draw_panel(axis: Axes, task: str, scores: dict[tuple[str, str, str], list[float]]) -> None:
    """Draw the runs of one task."""
    axis.axhline(
        interquartile_mean(scores[task, "3x32", "baseline"]),
        color="#3d3d3d",
        linestyle="--",
        linewidth=1,
        label="baseline, 3 layers of 32 units",
    )
    ticks = set[int]()
    for recipe, colour in COLOURS.items():
        by_depth = {
            int(scale.partition("x")[0]): runs
            for (its_task, scale, its_recipe), runs in scores.items()
            if (its_task, its_recipe) == (task, recipe) and scale.endswith(f"x{WIDTH}")
        }
        depths = sorted(by_depth)
        if not depths:
            continue  # not run yet
        ticks.update(depths)
        dots = [(depth, score) for depth in depths for score in by_depth[depth]]
        axis.plot(*zip(*dots, strict=True), "o", color=colour, alpha=0.35, markersize=5)
        means = [interquartile_mean(by_depth[depth]) for depth in depths]
        axis.plot(depths, means, color=colour, label=f"{LABELS[recipe]}, layers of {WIDTH} units")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(ticks), [str(depth) for depth in sorted(ticks)])
    axis.set_title(TITLES[task], fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)


def draw(tables: Path) -> Figure:
    """Draw the figure from the study's directory of tables."""
    scores = read_scores(tables)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(TITLES))
    for axis, task in zip(panels, TITLES, strict=True):
        draw_panel(axis, task, scores)
    figure.supxlabel("layers", fontsize=10)
    figure.supylabel("final return", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Read the tables and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tables", type=Path, default=Path("docs/results/depth"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/depth.png"))
    arguments = parser.parse_args()
    draw(arguments.tables).savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main()
