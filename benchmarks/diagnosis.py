"""Hits and false alarms of the diagnosis over recorded runs; writes a page.

    python benchmarks/diagnosis.py --output docs/results/diagnosis.md
    python benchmarks/diagnosis.py --record runs/deep --label "collapsed: DQN, 16 layers"

The first command reads committed tables alone: the studies' `curves.csv` and `gradient_norms.csv`, the curves
of `benchmarks/learning.py`, and `docs/results/diagnosis.csv`. The second adds a run to the latter.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_gfs.metrics.diagnosis import RULES, diagnose, is_read, not_judged
from lit_gfs.metrics.findings import Scalars
from lit_gfs.metrics.learning_rules import EVALUATION, TRAINING
from lit_gfs.metrics.network_rules import NORM
from lit_gfs.metrics.series import Series, bounded
from lit_gfs.study.logged_runs import find_runs, read_run
from lit_gfs.study.results.table import FINISHED, read_table

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
RECORDED = RESULTS / "diagnosis.csv"
STUDIES = ("control", "depth", "label_shuffle")
CURVES = ("collapse", "collapse_alone", "learning", "minatar")
WITHOUT_REPAIR = ("baseline", "clipping")
"""Variants of `collapse` and `collapse_alone` that failed; all other curves are of runs that learned."""

HEALTHY, FAILED = 0.8, 0.25
"""Normalized final scores from which on, and below which, a run of a study counts as healthy, or failed."""
FEW_POINTS = 16
"""Points of a recorded series, where they only have to show the shape."""
IN_FULL = (
    "representation/effective_rank",
    "representation/dormant_share",
    "policy/",
    "eval/",
    "loss/approx_kl",
)
"""Tags whose recorded series have as many points as a `Diagnosis` keeps."""


PAGE = """# The diagnosis: hits and false alarms

Made by `python benchmarks/diagnosis.py --output docs/results/diagnosis.md`, from committed tables alone.

## Runs of the committed studies and benchmarks

Of {runs} runs, {healthy} are healthy (normalized final score from {high} on) and {failed} failed (below
{low}); the others are left out. A rule judges a run if the tables have its series: evaluations of all
agents, training returns of those of `benchmarks/learning.py`, and gradient norms of one seed of each group.
They have no series of the representation, the policy and the guard. Many runs failed without a trace in
these tables: networks that are too small, and returns that never rose. *Fired* counts a run if a rule fires
in any part of it, and *lasted* if it holds until the end; only then the status of the run says so.

{rates}

At least one rule judges {judged_healthy} healthy runs and {judged_failed} failed ones; it fires in
{fired_healthy} and {fired_failed}. Findings in healthy runs:

{alarms}

## Recorded runs

Short runs with all monitors on, of 6,000 to 60,000 steps; `diagnosis.csv` has their series. *Broken* runs
have a learning rate that is about a hundred times too high, or 16 plain layers without a repair. The others
are shipped configurations and repaired networks; some had no time to learn.

These runs, and the dips of healthy runs above, served to choose the thresholds. So this page shows that the
thresholds can separate such runs, and not how often they will be wrong on other tasks.

| run | last evaluation | findings | rules not judged |
|---|---|---|---|
"""


class Case(NamedTuple):
    """A run: its name, whether it is healthy (``None`` if that is open), and its series."""

    name: str
    is_healthy: bool | None
    scalars: Scalars


def study_cases() -> Iterator[Case]:
    """Read the runs of the committed studies."""
    for study in STUDIES:
        table = read_table(RESULTS / study)
        for run in table.runs:
            if run.status != FINISHED or run.normalized_score is None:
                continue
            scalars = {
                tag: Series(curve.steps, curve.values)
                for (cell, tag), curve in table.curves.items()
                if cell == run.cell
            }
            if (norms := table.gradient_norms.get(run.cell)) is not None:
                layers = zip(norms.layers, norms.raw, strict=True)
                scalars |= {NORM + layer: Series(norms.steps, raw) for layer, raw in layers}
            score = run.normalized_score
            is_healthy = True if score >= HEALTHY else False if score < FAILED else None
            yield Case(f"{study}/{run.cell}", is_healthy, scalars)


def curve_cases() -> Iterator[Case]:
    """Read the curves of `benchmarks/learning.py`."""
    tags = {"evaluation": EVALUATION, "training": TRAINING}
    for name in CURVES:
        points: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
        with (RESULTS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                run = points[f"{row['configuration']}, seed {row['seed']}"]
                run[tags[row["episodes"]]].append((int(row["env_steps"]), float(row["mean_return"])))
        for run_name, curves in points.items():
            scalars = {tag: bounded(curve) for tag, curve in curves.items()}
            yield Case(f"{name}/{run_name}", not run_name.startswith(WITHOUT_REPAIR), scalars)


def recorded_cases() -> dict[str, Scalars]:
    """Read the recorded series by the runs' labels."""
    points: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    with RECORDED.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            points[row["run"]][row["tag"]].append((int(row["step"]), float(row["value"])))
    return {run: {tag: bounded(curve) for tag, curve in curves.items()} for run, curves in points.items()}


def record(directory: str, label: str) -> None:
    """Append the series of a run that rules read."""
    is_new = not RECORDED.exists()
    curves = read_run(find_runs([directory])[0]).curves
    with RECORDED.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(["run", "tag", "step", "value"])
        for tag, series in sorted(curves.items()):
            if is_read(tag):
                points = zip(*series, strict=True)
                kept = bounded(points) if tag.startswith(IN_FULL) else bounded(points, FEW_POINTS)
                writer.writerows(
                    (label, tag, step, f"{value:.3g}") for step, value in zip(*kept, strict=True)
                )


def rates(cases: Sequence[Case]) -> list[str]:
    """Count for each rule the runs that it judges, those where it fires, and those where that lasts."""
    lines = [
        "| rule | failed: judged | fired | lasted | healthy: judged | fired | lasted |",
        "|---|---|---|---|---|---|---|",
    ]
    for rule in RULES:
        cells = []
        for is_healthy in (False, True):
            found = [rule.judge(case.scalars) for case in cases if case.is_healthy is is_healthy]
            judged = [findings for findings in found if findings is not None]
            fired = [findings for findings in judged if findings]
            lasted = [findings for findings in fired if any(finding.lasts for finding in findings)]
            cells += [len(judged), len(fired), len(lasted)]
        lines.append(f"| {rule.name} | {' | '.join(map(str, cells))} |")
    return lines


def page() -> str:
    """Write the page."""
    cases = [*study_cases(), *curve_cases()]
    healthy = [case for case in cases if case.is_healthy]
    alarms = [f"- {case.name}: {finding}" for case in healthy for finding in diagnose(case.scalars)]
    judged = [case for case in cases if len(not_judged(case.scalars)) < len(RULES)]
    fired = [case for case in judged if diagnose(case.scalars)]
    text = PAGE.format(
        judged_healthy=sum(case.is_healthy is True for case in judged),
        judged_failed=sum(case.is_healthy is False for case in judged),
        fired_healthy=sum(case.is_healthy is True for case in fired),
        fired_failed=sum(case.is_healthy is False for case in fired),
        runs=len(cases),
        healthy=len(healthy),
        failed=sum(case.is_healthy is False for case in cases),
        high=HEALTHY,
        low=FAILED,
        rates="\n".join(rates(cases)),
        alarms="\n".join(alarms),
    )
    lines = []
    for run, scalars in recorded_cases().items():
        findings = "; ".join(map(str, diagnose(scalars))) or "none"
        last = scalars[EVALUATION].values[-1]
        lines.append(f"| {run} | {last:.4g} | {findings} | {len(not_judged(scalars))} |")
    return text + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--output", type=Path, help="The page; by default it is printed.")
    parser.add_argument("--record", help="Directory of a run to record.")
    parser.add_argument("--label", help="Label of the recorded run.")
    options = parser.parse_args()
    if options.record:
        record(options.record, options.label)
    elif options.output:
        options.output.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
