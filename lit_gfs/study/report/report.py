"""The report of a study: one self-contained HTML page with its figures, tables, failures and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lit_gfs.study.origin import Part
from lit_gfs.study.planning.plan import Study
from lit_gfs.study.report.figures import curve_figure, heat_map_figure, ladder_figure, scale_figure
from lit_gfs.study.report.overview import overview_section, verdict_section
from lit_gfs.study.report.page import details, page, picture, section, table
from lit_gfs.study.report.panels import data_uri
from lit_gfs.study.report.search import TITLE as SEARCH_TITLE
from lit_gfs.study.report.search import search_section
from lit_gfs.study.report.tables import headline_section, runs_section
from lit_gfs.study.results.ladders import MARGIN
from lit_gfs.study.results.summary import Summary
from lit_gfs.study.results.table import FAILED, MISSING, GradientNorms, Table
from lit_gfs.utils.atomic_files import replacing_text

REPORT_FILE = "report.html"
FEW_STRATA = 3
"""Up to this number of strata, the heat maps of all are open at first."""


def write_report(
    directory: Path, study: Study, table: Table, summary: Summary, parts: Sequence[Part]
) -> Path:
    """Write ``report.html``.

    Args:
        directory: The study's directory.
        study: The plan.
        table: The study's tables.
        summary: Its figures, from `summarize`.
        parts: The commands that ran its cells, with versions and machines; at least one.

    Returns:
        The path of the page.
    """
    ladders = [each for each in summary["ladders"] if _is_climbed(summary, each)]
    contents = {
        "overview": "At a glance",
        "verdicts": "Verdicts",
        "scale": "Scores by size, task by task",
        **({"ladder": "The largest network without loss"} if ladders else {}),
        "curves": "Learning curves",
        "headline": "Headline figures",
        "runs": "Runs",
        **({"search": SEARCH_TITLE} if study.search else {}),
        "gradients": "Gradient flow",
        "failures": "Failures",
        "provenance": "Provenance",
    }
    sections = [
        f"<h1>{escape(summary['study'])}</h1>",
        f'<p class="lead">{escape(summary["description"])}</p>',
        _counts(summary),
        "<nav>" + "".join(f'<a href="#{key}">{title}</a>' for key, title in contents.items()) + "</nav>",
        overview_section(summary, contents["overview"]),
        verdict_section(summary, contents["verdicts"]),
        section(
            "scale",
            contents["scale"],
            "Interquartile mean of the final scores and its 95% interval; every run is a faint dot. "
            "A method that scales without loss does not fall from left to right.",
            picture(
                data_uri(scale_figure(summary)),
                "final score against scale",
                "Recipes stand side by side at each scale.",
            ),
        ),
        *([_ladders(summary, ladders, contents["ladder"])] if ladders else []),
        _curves(summary, contents["curves"]),
        headline_section(summary, contents["headline"]),
        runs_section(summary, contents["runs"]),
        search_section(study),
        _gradients(study, table, summary, contents["gradients"]),
        _failures(summary, contents["failures"]),
        _provenance(directory, summary, parts, contents["provenance"]),
    ]
    path = directory / REPORT_FILE
    with replacing_text(path) as file:
        file.write(page(f"{summary['study']}: report", sections))
    return path


def _counts(summary: Summary) -> str:
    cells = summary["cells"]
    missing = f", {cells['missing']} were not run" if cells["missing"] else ""
    return f'<p class="small">{cells["failed"]} of {cells["planned"]} cells failed{missing}.</p>'


def _is_climbed(summary: Summary, ladder: dict[str, Any]) -> bool:
    """Return whether two scales of a ladder have results."""
    return len({group["scale"] for group in summary["groups"]} & set(ladder["scales"])) > 1


def _ladders(summary: Summary, ladders: Sequence[dict[str, Any]], title: str) -> str:
    parts = []
    for ladder in ladders:
        name = f"{ladder['along']}{' at ' * bool(ladder['at'])}{ladder['at']}"
        rows = [
            [escape(entry["stratum"]), escape(entry["recipe"])]
            + ["none" if entry[key] is None else escape(entry[key]) for key in ("by_estimate", "by_interval")]
            for entry in ladder["largest_without_loss"]
        ]
        parts += [
            picture(
                data_uri(ladder_figure(summary, ladder)),
                f"final score against {name}",
                f"Final score against {name}. Dotted: the small baseline.",
            ),
            details(f"Largest network along {name}", False, table(_LADDER_COLUMNS, rows)),
        ]
    return section(
        "ladder",
        title,
        "Interquartile mean of the final scores and its 95% interval. A star marks the largest network "
        "whose ratio to the small baseline is at least 1; a ring marks the largest network whose interval of "
        f"this ratio begins at {MARGIN} or above.",
        *parts,
    )


_LADDER_COLUMNS = ["task", "recipe", "ratio at least 1", f"interval from {MARGIN} or above"]


def _curves(summary: Summary, title: str) -> str:
    tag = escape(summary["score"]["curve_tag"])
    return section(
        "curves",
        title,
        f"Interquartile mean over seeds of <code>{tag}</code>, each run smoothed over three evaluations; 95% "
        "bootstrap intervals shaded. A run that failed counts as the floor throughout.",
        picture(
            data_uri(curve_figure(summary)), "learning curves", f"Against {summary['score']['x_label']}."
        ),
        picture(
            data_uri(curve_figure(summary, "seconds")),
            "learning curves against wall time",
            "Against wall time. A run keeps its last score once it has ended.",
        ),
    )


def _gradients(study: Study, runs: Table, summary: Summary, title: str) -> str:
    strata: dict[str, dict[tuple[str, str], GradientNorms]] = {}
    for run in runs.runs:
        norms = runs.gradient_norms.get(run.cell)
        if norms is not None and norms.steps:
            stratum = strata.setdefault(study.stratum(run.levels), {})
            stratum.setdefault((run.levels["scale"], run.levels["recipe"]), norms)
    parts = [
        details(
            name,
            index < FEW_STRATA,
            picture(
                data_uri(
                    heat_map_figure(norms, summary["recipes"], summary["scales"], summary["score"]["x_label"])
                ),
                f"gradient norms of {name}",
                "Layers from the first (top) to the last; grey: no gradient, red: not finite.",
            ),
        )
        for index, (name, norms) in enumerate(strata.items())
    ]
    return section(
        "gradients",
        title,
        "Gradient norm of every layer over the run of the first seed, before interventions (raw) and as the "
        "optimizer received it (applied). Rows that grow dark towards one end are layers that gradients do "
        "not reach; bright columns are spikes.",
        *(parts or ["<p>No gradient norms were recorded.</p>"]),
    )


def _failures(summary: Summary, title: str) -> str:
    parts = []
    for status in (FAILED, MISSING):
        found = [failure for failure in summary["failures"] if failure["status"] == status]
        rows = [[escape(failure["cell"]), escape(failure["error"])] for failure in found]
        if rows:
            name = f"{len(rows)} cells {'failed' if status == FAILED else 'were not run'}"
            parts.append(details(name, status == FAILED, table(["cell", "error"], rows)))
    return section(
        "failures",
        title,
        "Every cell that failed or was not run. A failed cell counts as the floor in all figures; one that "
        "was not run is left out.",
        *(parts or ["<p>None.</p>"]),
    )


def _provenance(directory: Path, summary: Summary, parts: Sequence[Part], title: str) -> str:
    # A command that only merges tables runs no cell.
    parts = [part for part in parts if part.cells != []] or parts
    if len(parts) == 1:
        ran = "The study was run by"
    else:
        ran = (
            f"The study was run in {len(parts)} parts, which <code>origin.json</code> lists cell by cell, by"
        )
    header = ["", *(f"part {number}" for number in range(1, len(parts) + 1))] if len(parts) > 1 else ["", ""]
    rows = [["cells", *("all" if part.cells is None else str(len(part.cells)) for part in parts)]]
    for key in dict.fromkeys(key for part in parts for key in part.versions):
        rows.append([escape(key), *(escape(part.versions.get(key, "")) for part in parts)])
    return section(
        "provenance",
        title,
        ran,
        *(f"<pre>{escape(command)}</pre>" for command in dict.fromkeys(part.command for part in parts)),
        "<p>This page and <code>summary.json</code> are made from the tables beside them, without the "
        "runs, by</p>",
        f"<pre>python -m lit_gfs report {escape(str(directory))}</pre>",
        f"<p>The bootstrap is seeded with {summary['seed']}: rebuilding gives the same numbers.</p>",
        details("Versions and machines", False, table(header, rows)),
    )
