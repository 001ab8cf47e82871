"""Rank the stabilizers by the tables of studies/zoo and studies/zoo_labels, as a table in Markdown.

    python benchmarks/zoo.py

Methods are ranked by the mean of their normalized scores on all tasks: 0 is the floor of a task, 1 its
reference. Scores are interquartile means over seeds with 95% bootstrap intervals. Stability gain, speed-up
and price are against the baseline of the same network, in the first of the studies. The price is processor
time as a ratio to the baseline: means over seeds, and their geometric mean over tasks. docs/statistics.md
defines all of these.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

TASKS = {"digits": "digits", "pqn_acrobot": "Acrobot", "pqn_breakout": "Breakout"}
"""The tasks and their names in the table."""
DIGITS = {"digits": 2, "pqn_acrobot": 0, "pqn_breakout": 1}
"""Decimals of final scores."""


class Row(NamedTuple):
    """A method and its figures in the table."""

    name: str
    normalized: float
    """Mean of the normalized scores over the tasks."""
    scores: dict[str, str]
    """Final score with its interval, by task."""
    stability: str
    speed: str
    price: float
    failed: int


def price_of(by_task: dict[str, Any], baseline: dict[str, Any]) -> float:
    """Return the processor time of a method as a ratio to that of the baseline."""
    return statistics.geometric_mean(
        each["cpu_seconds"] / baseline[task]["cpu_seconds"] for task, each in by_task.items()
    )


def with_interval(estimate: dict[str, Any] | None, decimals: int, unit: float = 1.0, sign: str = "") -> str:
    """Write an estimate as ``value [low, high]``; an infinite end is written as such."""
    if estimate is None or estimate["value"] is None:
        return "-"
    ends = [math.inf if end is None else end for end in estimate["interval"] or ()]
    numbers = [f"{unit * number:.{decimals}f}{sign}" for number in (estimate["value"], *ends)]
    return numbers[0] if not ends else f"{numbers[0]} [{', '.join(numbers[1:])}]"


def read_rows(tables: list[Path], scales: tuple[str, ...] = ("deep", "12x192")) -> list[Row]:
    """Return the rows, the best first; methods without runs on all of the tasks are left out.

    Args:
        tables: Tables of studies/zoo, studies/zoo_labels, or both; stability, speed, price are of the first.
        scales: The deep networks' names.
    """
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    first: set[str] = set()  # the tasks of the first table
    aggregates: dict[str, Any] = {}
    for directory in tables:
        summary = json.loads((directory / "summary.json").read_text())
        for group in summary["groups"]:
            if group["scale"] in scales and group["normalized_score"]["value"] is not None:
                groups[group["recipe"]][group["stratum"]] = group
                if directory == tables[0]:
                    first.add(group["stratum"])
        for each in summary["aggregates"]:
            if each["scale"] in scales and each["set"] == "all tasks":
                aggregates.setdefault(each["recipe"], each)
    tasks = [task for task in TASKS if task in groups["baseline"]]
    rows = [
        Row(
            recipe,
            statistics.fmean(each["normalized_score"]["value"] for each in by_task.values()),
            {task: with_interval(by_task[task]["final_score"], DIGITS[task]) for task in tasks},
            with_interval(aggregates[recipe]["stability_gain"], 0, 100, "%"),
            with_interval(aggregates[recipe].get("speed_up"), 1),
            price_of({task: by_task[task] for task in tasks if task in first}, groups["baseline"]),
            sum(each["failed"] for each in by_task.values()),
        )
        for recipe, by_task in groups.items()
        if len(by_task) == len(tasks)
    ]
    return sorted(rows, key=lambda row: -row.normalized)


def as_table(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown."""
    tasks = list(rows[0].scores)
    measures = ["stability gain", "speed-up", "price", "failed"]
    head = ["", "method", "normalized score", *(TASKS[task] for task in tasks), *measures]
    lines = [head, ["---"] * len(head)]
    for rank, row in enumerate(rows, 1):
        name = f"**{row.name}**" if row.name == "baseline" else row.name
        scores = [row.scores[task] for task in tasks]
        lines.append(
            [
                *(str(rank), name, f"{row.normalized:.2f}", *scores, row.stability, row.speed),
                *(f"{row.price:.2f}", str(row.failed)),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Read the tables of both studies and write the ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default = [Path("docs/results/zoo"), Path("docs/results/zoo_labels")]
    parser.add_argument("--tables", type=Path, nargs="+", default=default)
    parser.add_argument("--output", type=Path, default=None, help="a file; by default the terminal")
    arguments = parser.parse_args()
    table = as_table(read_rows(arguments.tables))
    if arguments.output is None:
        print(table, end="")
    else:
        arguments.output.write_text(table)


if __name__ == "__main__":
    main()
