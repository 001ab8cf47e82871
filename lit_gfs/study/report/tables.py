"""The tables of a study's report: headline figures, and runs in detail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from lit_gfs.study.report.page import decimals, details, estimate_cell, number, percent, section, short, table
from lit_gfs.study.report.panels import recipe_styles
from lit_gfs.study.results.estimates import Figure
from lit_gfs.study.results.summary import (
    ALL,
    AMONG_HELD_OUT,
    AMONG_TUNED,
    HELD_OUT,
    SIZE_DOES_NOT_HURT,
    SIZE_HURTS,
    STRATUM,
    TUNED,
    Summary,
)


def aggregates(summary: Summary, name: str, stratum: str = "") -> list[dict[str, Any]]:
    """List the headlines over a set of strata."""
    return [row for row in summary["aggregates"] if row["set"] == name and row["stratum"] == stratum]


def has_both_sets(summary: Summary) -> bool:
    """Return whether some tasks took part in choosing the recipes and some did not."""
    return len({stratum["tuned"] for stratum in summary["strata"]}) == 2


def headline_section(summary: Summary, title: str) -> str:
    """Show the headline figures over sets of tasks, then task by task."""
    strata = [stratum["name"] for stratum in summary["strata"]]
    sets = [ALL]
    by_size = [SIZE_HURTS, SIZE_DOES_NOT_HURT]
    if has_both_sets(summary):
        sets = [TUNED, HELD_OUT, ALL]
        by_size = [name + among for name in by_size for among in (AMONG_TUNED, AMONG_HELD_OUT, "")]
    chosen = [(set_title(name), aggregates(summary, name)) for name in sets + by_size]
    parts = [*chosen, *((name, aggregates(summary, STRATUM, name)) for name in strata)]
    return section(
        "headline",
        title,
        _explanation(summary),
        *(details(name, False, *_headline_tables(summary, rows)) for name, rows in parts if rows),
    )


def set_title(name: str) -> str:
    """Write the name of a set of tasks as a title."""
    title = f"where {name}" if name.startswith((SIZE_HURTS, SIZE_DOES_NOT_HURT)) else name
    return title[:1].upper() + title[1:]


def _headline_tables(summary: Summary, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Show headlines, and below them the comparison with the tuned baseline."""
    shown = [table(_HEADLINE_COLUMNS, _headline_rows(summary, rows))]
    if tuned := summary["tuned_baseline"]:
        shown += [f"<h3>Against {escape(tuned)}</h3>", table(_TUNED_COLUMNS, _tuned_rows(summary, rows))]
    return shown


_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "speed_up": ("speed-up, steps", decimals),
    "speed_up_seconds": ("speed-up, wall time", decimals),
    "speed_up_to_base_score": ("to the small baseline's score, steps", decimals),
    "speed_up_over_base": ("over small baseline, steps", decimals),
    "speed_up_over_base_seconds": ("over small baseline, wall time", decimals),
}
_TUNED_FIGURES = {
    "ratio": ("ratio to it at small scale", decimals),
    "ratio_at_scale": ("ratio to it at the same scale", decimals),
    "stability_gain": ("stability gain", percent),
    **_FIGURES,
    "probability_of_improvement": ("P(better)", decimals),
}
_TUNED_COLUMNS = ["scale", "recipe", *(title for title, _ in _TUNED_FIGURES.values())]
_HEADLINE_COLUMNS = [
    "scale",
    "recipe",
    "score",
    "ratio to small baseline",
    "ratio at the same scale",
    "instability",
    "stability gain",
    *(title for title, _ in _FIGURES.values()),
    "optimality gap",
    "P(better)",
]


def _explanation(summary: Summary) -> str:
    if has_both_sets(summary):
        remark = "Tuned tasks took part in choosing the recipes; held-out tasks did not."
    elif any(stratum["tuned"] for stratum in summary["strata"]):
        remark = "All tasks took part in choosing the recipes: none is held out."
    else:
        remark = "No task took part in choosing the recipes."
    return (
        f"Values with 95% stratified bootstrap intervals ({summary['resamples']:,} resamples of runs within "
        "each task). <i>Score</i>: interquartile mean of normalized final scores, 0 for an agent that "
        "learned nothing, 1 for a solved task. <i>Ratio</i>: score over that of "
        f"{escape(summary['baseline'])} at {escape(summary['base_scale'])}, and at the same scale. "
        "<i>Size hurts</i> where that baseline scores lower at the larger scale. <i>Instability</i>: share "
        "of what was learned that is lost again, averaged over the run; <i>stability gain</i>: by how much "
        "it is lower than the baseline's at the same scale. <i>Speed-up</i>: what the baseline of the same "
        "scale needs to its own final score over what the recipe needs to that score, 0 if it never gets "
        "there; median over the tasks on which that baseline learned. <i>To the small baseline's score</i>: "
        "the same with the small baseline's final score; a baseline that never gets there counts as if its "
        "last step did. <i>P(better)</i>: how likely a run "
        f"scores higher than one of the baseline at the same scale. {remark}"
    )


def _tuned_rows(summary: Summary, rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    lines = []
    before = None
    for row in rows:
        figures = row["tuned_baseline"]
        cells = [
            estimate_cell(figures[name], form, len(row["tasks"]))
            for name, (_, form) in _TUNED_FIGURES.items()
        ]
        lines.append([scale_cell(row, before), recipe_cell(summary, row["recipe"]), *cells])
        before = row["scale"]
    return lines


def _headline_rows(summary: Summary, rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    lines = []
    before = None
    for row in rows:
        strata = len(row["tasks"])
        is_baseline = row["recipe"] == summary["baseline"]
        cells = [
            _beside(row, "normalized_score", "baseline_score", strata, is_baseline),
            estimate_cell(row["ratio"], decimals, strata),
            estimate_cell(row["ratio_at_scale"], decimals, strata),
            _beside(row, "instability", "baseline_instability", strata, is_baseline),
            estimate_cell(row["stability_gain"], percent, strata),
            *(
                estimate_cell(row[name], decimals, strata)
                for name in (
                    "speed_up",
                    "speed_up_seconds",
                    "speed_up_to_base_score",
                    "speed_up_over_base",
                    "speed_up_over_base_seconds",
                    "optimality_gap",
                    "probability_of_improvement",
                )
            ),
        ]
        lines.append([scale_cell(row, before), recipe_cell(summary, row["recipe"]), *cells])
        before = row["scale"]
    return lines


def _beside(row: dict[str, Any], name: str, baseline: str, strata: int, is_baseline: bool) -> str:
    """Write an estimate with the baseline's below it."""
    form = decimals if name == "normalized_score" else short
    cell = estimate_cell(row[name], form, strata)
    other: Figure = row[baseline]
    if is_baseline or other["value"] is None:
        return cell
    return f'{cell}<span class="note beside">baseline {form(other["value"])}</span>'


def runs_section(summary: Summary, title: str) -> str:
    """Show the runs of every recipe and scale, task by task."""
    header = [
        "scale",
        "recipe",
        "final score",
        "normalized",
        "instability",
        f"{escape(summary['score']['x_label'])} to the baseline's final score",
        "wall time, s",
        "processor time, s",
        "parameters",
        "final score of each seed",
    ]
    strata = [stratum["name"] for stratum in summary["strata"]]
    parts = []
    for name in strata:
        rows: list[list[str]] = []
        before = None
        for group in (group for group in summary["groups"] if group["stratum"] == name):
            learned = f"{group['learned']} of {group['seeds']} learned"
            rows.append(
                [
                    scale_cell(group, before),
                    recipe_cell(summary, group["recipe"]),
                    estimate_cell(group["final_score"], number),
                    estimate_cell(group["normalized_score"], decimals),
                    estimate_cell(group["instability"], short)
                    + ("" if group["learned"] == group["seeds"] else f'<span class="note">{learned}</span>'),
                    estimate_cell(group["steps_to_reach"], number),
                    "" if group["wall_seconds"] is None else number(group["wall_seconds"]),
                    "" if group["cpu_seconds"] is None else number(group["cpu_seconds"]),
                    "" if group["parameters"] is None else number(group["parameters"]),
                    " &ensp;".join(
                        f'<span title="seed {seed}">{_final(final)}</span>'
                        for seed, final in group["finals"].items()
                    ),
                ]
            )
            before = group["scale"]
        parts.append(details(name, False, table(header, rows)))
    return section(
        "runs",
        title,
        "Interquartile means over seeds with 95% bootstrap intervals; wall and processor time are means over "
        "the runs that finished. A failed run counts as the floor, and as one that lost everything.",
        *parts,
    )


def scale_cell(row: dict[str, Any], before: str | None) -> str:
    """Write a row's scale, unless the row before has the same."""
    return "" if row["scale"] == before else f"<b>{escape(row['scale'])}</b>"


def recipe_cell(summary: Summary, recipe: str) -> str:
    """Write a recipe's name beside its colour."""
    colour = recipe_styles(summary["recipes"], summary["baseline"])[recipe].colour
    swatch = f'<span class="swatch" style="background:{colour}"></span>'
    return f'<span class="beside">{swatch}{escape(recipe)}</span>'


def _final(score: float | None) -> str:
    return '<span class="chip unmet">failed</span>' if score is None else number(score)
