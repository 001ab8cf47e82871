"""Measure the time that tables and report of a large study take, with results that no run has made.

    python benchmarks/study_tables.py --tasks 57

The study has the given number of tasks, 3 sizes, 4 recipes and 5 seeds. A result has a curve of 100 points,
and gradient norms of 16 layers. The script prints processor seconds, and the size of every file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from lit_gfs.study.cell.planned import CELLS_DIRECTORY, read_results
from lit_gfs.study.planning.plan import Study, read_study
from lit_gfs.study.report.report import write_report
from lit_gfs.study.results.collect import Result, make_table, write_result
from lit_gfs.study.results.summary import summarize, write_summary
from lit_gfs.study.results.table import FINISHED, Curve, GradientNorms, read_table, write_table

POINTS, LAYERS, BINS = 100, 16, 40
STEPS = 10_000_000
T = TypeVar("T")


def plan(tasks: int) -> Study:
    """Plan a study of 60 cells for each task."""
    return read_study(
        {
            "name": "large",
            "factors": {
                "task": {f"game_{index}": {"floor": 0, "reference": POINTS} for index in range(tasks)},
                "scale": {"small": {}, "medium": {}, "large": {}},
                "recipe": {"baseline": {}, "gfs_first_order": {}, "gfs": {}, "multiskip_kron": {}},
                "seed": list(range(5)),
            },
            "compare": {"baseline": "baseline", "base_scale": "small"},
        }
    )


def write_results(study: Study, directory: Path) -> None:
    """Write a result of every cell."""
    random = np.random.default_rng(0)
    steps = [STEPS * (index + 1) // POINTS for index in range(POINTS)]
    norms = GradientNorms(
        [f"trunk.layer_{index:02d}" for index in range(LAYERS)], steps[:BINS], *[[[1.0] * BINS] * LAYERS] * 2
    )
    for cell in study.cells():
        scores = np.cumsum(random.random(POINTS)).tolist()
        curves = {study.score.tag: Curve(steps, [step / 2_500 for step in steps], scores)}
        result = Result(
            cell.name,
            cell.arguments,
            [*cell.arguments, "--threads=1"],
            FINISHED,
            steps=STEPS,
            parameters=1,
            wall_seconds=STEPS / 2_500,
            curves=curves,
            gradient_norms=norms,
        )
        place = directory / CELLS_DIRECTORY / cell.name
        place.mkdir(parents=True)
        write_result(place, result)


def measure(what: str, work: Callable[[], T]) -> T:
    """Do the work, and print its processor seconds."""
    began = time.process_time()
    outcome = work()
    print(f"| {what} | {time.process_time() - began:.1f} |", flush=True)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=57)
    study = plan(parser.parse_args().tasks)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        write_results(study, directory)
        print(f"{len(study.cells()):,} cells", "", "| | processor seconds |", "|---|---|", sep="\n")
        results = measure("read the results", lambda: read_results(study, directory))
        measure("write the tables", lambda: write_table(directory, make_table(study, results)))
        table = measure("read the tables", lambda: read_table(directory))
        summary = measure("compute the figures", lambda: summarize(study, table))
        write_summary(directory, summary)
        measure("draw the report", lambda: write_report(directory, study, table, summary, []))
        print("\n| file | MB |", "|---|---|", sep="\n")
        for file in sorted(path for path in directory.iterdir() if path.is_file()):
            print(f"| `{file.name}` | {file.stat().st_size / 1e6:.1f} |")


if __name__ == "__main__":
    main()
