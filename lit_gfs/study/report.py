"""The report of a study: one self-contained HTML page with its figures, tables, failures and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lit_gfs.study.comparisons import AIMS
from lit_gfs.study.figures import curve_figure, heat_map_figure, ladder_figure, scale_figure
from lit_gfs.study.ladders import MARGIN
from lit_gfs.study.origin import Part
from lit_gfs.study.page import (
    decimals,
    details,
    estimate_text,
    page,
    percent,
    picture,
    section,
    table,
)
from lit_gfs.study.panels import data_uri
from lit_gfs.study.plan import Study
from lit_gfs.study.report_tables import (
    FEW_STRATA,
    aggregates,
    has_both_sets,
    headline_section,
    runs_section,
    set_title,
)
from lit_gfs.study.summary import ALL, AMONG_HELD_OUT, HELD_OUT, SIZE_DOES_NOT_HURT, SIZE_HURTS, Summary
from lit_gfs.study.table import GradientNorms, Table
from lit_gfs.utils.atomic_files import replacing_text

REPORT_FILE = "report.html"
_CHIPS = {"met": "met", "met by the estimate alone": "alone", "not met": "unmet", "undefined": ""}


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
    contents = {
        "headline": "Headline figures",
        "scale": "Scale against final score",
        **({"ladder": "The largest network without loss"} if summary["ladders"] else {}),
        "curves": "Learning curves",
        "runs": "Runs",
        "gradients": "Gradient flow",
        "failures": "Failures",
        "provenance": "Provenance",
    }
    sections = [
        f"<h1>{escape(summary['study'])}</h1>",
        f'<p class="lead">{escape(summary["description"])}</p>',
        _verdict(summary),
        "<nav>" + "".join(f'<a href="#{key}">{title}</a>' for key, title in contents.items()) + "</nav>",
        headline_section(summary, contents["headline"]),
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
        *(_ladders(summary, contents["ladder"]) for _ in summary["ladders"][:1]),
        _curves(summary, contents["curves"]),
        runs_section(summary, contents["runs"]),
        _gradients(study, table, summary, contents["gradients"]),
        _failures(summary, contents["failures"]),
        _provenance(directory, summary, parts, contents["provenance"]),
    ]
    path = directory / REPORT_FILE
    with replacing_text(path) as file:
        file.write(page(f"{summary['study']}: report", sections))
    return path


def _verdict(summary: Summary) -> str:
    cells = summary["cells"]
    sizes = [scale for scale in summary["scales"] if scale != summary["base_scale"]] or summary["scales"]
    parts = []
    titles = [ALL, SIZE_HURTS, SIZE_DOES_NOT_HURT]
    if has_both_sets(summary):
        titles[1:1] = [HELD_OUT]
        titles.insert(3, SIZE_HURTS + AMONG_HELD_OUT)
    for title in titles:
        rows = [
            row
            for row in aggregates(summary, title)
            if row["scale"] in sizes and row["recipe"] != summary["baseline"]
        ]
        if rows:
            write = _no_worse if title == SIZE_DOES_NOT_HURT else _sentence
            sentences = "".join(write(row, summary) for row in rows)
            parts.append(f"<p><b>{set_title(title)}</b></p><ul>{sentences}</ul>")
    missing = f", {cells['missing']} were not run" if cells["missing"] else ""
    parts.append(
        f"<p>{cells['failed']} of {cells['planned']} cells failed{missing}. "
        "Aims: the interval of the ratio at 1 or above, a stability gain of "
        f"{percent(AIMS['stability_gain'])}, a speed-up of {AIMS['speed_up']}; where size does not hurt, "
        f"at least {AIMS['ratio_at_scale']} of the score of the baseline at the same scale.</p>"
    )
    return f'<div class="verdict">{"".join(parts)}</div>'


def _sentence(row: dict[str, Any], summary: Summary) -> str:
    tuned = row["recipe"] != summary["tuned_baseline"] and row.get("tuned_baseline")
    also = f" Against {escape(summary['tuned_baseline'])}: {_comparison(tuned)}." if tuned else ""
    return f"<li>{_who(row)}: {_comparison(row)}.{also}</li>"


def _comparison(figures: dict[str, Any]) -> str:
    chips = {name: _chip(verdict) for name, verdict in figures["verdicts"].items()}
    return (
        f"{estimate_text(figures['ratio'], decimals)} of the small baseline's score {chips['ratio']}; "
        f"stability gain {estimate_text(figures['stability_gain'], percent)} {chips['stability_gain']}; "
        f"speed-up {estimate_text(figures['speed_up'], decimals)} {chips['speed_up']}"
    )


def _no_worse(row: dict[str, Any], summary: Summary) -> str:
    ratio = estimate_text(row["ratio_at_scale"], decimals)
    return (
        f"<li>{_who(row)}: {ratio} of the score of {escape(summary['baseline'])} at the same scale "
        f"{_chip(row['verdicts']['ratio_at_scale'])}.</li>"
    )


def _who(row: dict[str, Any]) -> str:
    return f"<b>{escape(row['recipe'])}</b> at <b>{escape(row['scale'])}</b>"


def _chip(verdict: str) -> str:
    return f'<span class="chip {_CHIPS[verdict]}">{verdict}</span>'


def _ladders(summary: Summary, title: str) -> str:
    parts = []
    for ladder in summary["ladders"]:
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
    rows = [[escape(failure[key]) for key in ("cell", "status", "error")] for failure in summary["failures"]]
    return section(
        "failures",
        title,
        "Every cell that failed or was not run. A failed cell counts as the floor in all figures; one that "
        "was not run is left out.",
        table(["cell", "status", "error"], rows) if rows else "<p>None.</p>",
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
        table(header, rows),
    )
