"""The first screen of a study's report: scores beside the baseline's, tasks won and lost, and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from lit_gfs.study.report.figures import overview_figure
from lit_gfs.study.report.page import (
    beside,
    chip,
    decimals,
    details,
    estimate_cell,
    estimate_text,
    percent,
    picture,
    section,
    signed,
    table,
)
from lit_gfs.study.report.panels import data_uri
from lit_gfs.study.report.tables import aggregates, has_both_sets, recipe_cell, scale_cell, set_title
from lit_gfs.study.results.comparisons import ITSELF
from lit_gfs.study.results.summary import (
    ALL,
    AMONG_HELD_OUT,
    HELD_OUT,
    SIZE_DOES_NOT_HURT,
    SIZE_HURTS,
    STRATUM,
    Summary,
)
from lit_gfs.study.results.verdicts import AIMS, OUTCOMES

Row = dict[str, Any]

_OUTCOME_CHIPS = {"wins": "met", "ties": "", "losses": "unmet"}
_VERDICT_CHIPS = {"met": "met", "met by the estimate alone": "alone", "not met": "unmet", "undefined": ""}
_VERDICTS = {
    "ratio": (f"ratio to the small baseline<br>aim: interval from {AIMS['ratio']:.0f} or above", decimals),
    "stability_gain": (f"stability gain<br>aim: {percent(AIMS['stability_gain'])}", percent),
    "speed_up": (f"speed-up<br>aim: {AIMS['speed_up']}", decimals),
    "ratio_at_scale": (
        f"ratio at the same scale<br>aim where size does not hurt: {AIMS['ratio_at_scale']}",
        decimals,
    ),
}


def overview_section(summary: Summary, title: str) -> str:
    """Show scores beside those of the baseline of the same size, tasks won and lost, and scores by size."""
    baseline = escape(summary["baseline"])
    parts = [_scores(summary, "", summary["baseline"]) or "<p>No recipe was run beside it yet.</p>"]
    tuned = summary["tuned_baseline"]
    if tuned and (scores := _scores(summary, "tuned_baseline", tuned)):
        parts += [f"<h3>Against {escape(tuned)}</h3>", scores]
    figure = overview_figure(summary)
    if figure is None:
        plot = "<p>No task has a floor and a reference, so scores of several tasks have no mean.</p>"
    else:
        plot = picture(
            data_uri(figure),
            "normalized score against size",
            "Normalized score by size, over all tasks that a recipe was run on. A hollow point covers fewer "
            "tasks than the others. Dotted: an agent that learned nothing (0), and a solved task (1).",
            fits=True,
        )
    return section(
        "overview",
        title,
        f"Normalized score of each recipe and of {baseline} <b>at the same size</b>, on the tasks that both "
        "were run on, with 95% intervals. A recipe <i>wins</i> a task if the interval of the difference in "
        "final score is above 0, <i>loses</i> it if it is below 0, and else ties.",
        beside("\n".join(parts), plot),
        *(details("Wins, ties and losses task by task", False, each) for each in _outcomes_by_task(summary)),
    )


def verdict_section(summary: Summary, title: str) -> str:
    """Show for each set of tasks which recipe meets which aim, the baseline included."""
    sets = [ALL, SIZE_HURTS, SIZE_DOES_NOT_HURT]
    if has_both_sets(summary):
        sets = [ALL, HELD_OUT, SIZE_HURTS, SIZE_HURTS + AMONG_HELD_OUT, SIZE_DOES_NOT_HURT]
    parts = []
    tuned = summary["tuned_baseline"] or ""
    for name in sets:
        if rows := _at_large_scales(summary, aggregates(summary, name)):
            is_open = name in (ALL, HELD_OUT)
            parts.append(details(set_title(name), is_open, _verdicts(summary, rows)))
    return section(
        "verdicts",
        title,
        "A figure meets its aim if its interval does. The baseline itself has a verdict on its ratio to the "
        "small baseline: where it meets this aim too, it needs no recipe."
        + (f" A second line in a cell compares with {escape(tuned)}." if tuned else ""),
        *parts,
    )


def _scores(summary: Summary, key: str, baseline: str) -> str:
    """Compare the scores of all other recipes with a baseline; empty if there is nothing to compare."""
    rows: list[Sequence[str]] = []
    before = None
    for row in aggregates(summary, ALL):
        against = row[key] if key else row
        if row["recipe"] in (baseline, summary["baseline"]) or against["baseline_score"]["value"] is None:
            continue
        rows.append(
            [
                scale_cell(row, before),
                recipe_cell(summary, row["recipe"]),
                estimate_cell(against["compared_score"], decimals),
                estimate_cell(against["baseline_score"], decimals),
                estimate_cell(against["score_difference"], signed, len(row["tasks"])),
                _counted(against["outcomes"], against["score_difference"]["strata"]),
                _seeds(summary, row),
            ]
        )
        before = row["scale"]
    if not rows:
        return ""
    return table(
        ["scale", "recipe", "score", escape(baseline), "difference", "wins, ties, losses", "seeds"], rows
    )


def _counted(outcomes: dict[str, list[str]], tasks: int) -> str:
    chips = [
        chip(str(len(outcomes[name])), _OUTCOME_CHIPS[name], f"{name}: {', '.join(outcomes[name]) or 'none'}")
        for name in OUTCOMES
    ]
    open_tasks = tasks - sum(map(len, outcomes.values()))
    note = f'<span class="note">one seed: {open_tasks}</span>' if open_tasks > 0 else ""
    return f'<span class="beside">{" ".join(chips)}</span>{note}'


def _seeds(summary: Summary, row: Row) -> str:
    """Write the number of runs per task, from the smallest group to the largest."""
    wanted = (row["scale"], row["recipe"])
    counts = [group["seeds"] for group in summary["groups"] if (group["scale"], group["recipe"]) == wanted]
    return f'<span class="beside">{_range(counts)}</span>'


def _range(counts: Iterable[int]) -> str:
    low, high = min(counts := list(counts)), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _outcomes_by_task(summary: Summary) -> list[str]:
    """Show the difference to the baseline of the same size, task by task; nothing if there is none."""
    recipes = [recipe for recipe in summary["recipes"] if recipe != summary["baseline"]]
    rows: list[Sequence[str] | str] = []
    for scale in summary["scales"]:
        lines = []
        for stratum in summary["strata"]:
            found = {
                row["recipe"]: row
                for row in aggregates(summary, STRATUM, stratum["name"])
                if row["scale"] == scale and row["baseline_score"]["value"] is not None
            }
            cells = [_outcome(found[recipe]) if recipe in found else "" for recipe in recipes]
            if any(cells):
                lines.append([escape(stratum["name"]), *cells])
        if lines:
            rows += [f"{escape(scale)}: normalized score minus that of {escape(summary['baseline'])}", *lines]
    header = ["task", *(recipe_cell(summary, recipe) for recipe in recipes)]
    return [table(header, rows)] if rows else []


def _outcome(row: Row) -> str:
    (name,) = [name for name in OUTCOMES if row["outcomes"][name]] or [""]
    mark = chip({"wins": "win", "ties": "tie", "losses": "loss"}[name], _OUTCOME_CHIPS[name]) if name else ""
    return f"{mark} {estimate_cell(row['score_difference'], signed)}"


def _verdicts(summary: Summary, rows: Sequence[Row]) -> str:
    lines: list[Sequence[str]] = []
    before = None
    for row in rows:
        tuned = row.get("tuned_baseline") if row["recipe"] != summary["tuned_baseline"] else None
        cells = [_verdict(summary, row, tuned, name) for name in _VERDICTS]
        lines.append([scale_cell(row, before), recipe_cell(summary, row["recipe"]), *cells])
        before = row["scale"]
    return table(["scale", "recipe", *(title for title, _ in _VERDICTS.values())], lines)


def _verdict(summary: Summary, row: Row, tuned: Row | None, name: str) -> str:
    figure, form = row[name], _VERDICTS[name][1]
    if figure["note"] == ITSELF:
        return estimate_cell(figure, form)
    judged = name != "ratio_at_scale" or row["set"].startswith(SIZE_DOES_NOT_HURT)
    text = _line(row, name, judged)
    if tuned and row["recipe"] != summary["baseline"] and tuned[name]["value"] is not None:
        text += f'<span class="note">{_line(tuned, name, judged)}</span>'
    return text


def _line(row: Row, name: str, judged: bool) -> str:
    text = estimate_text(row[name], _VERDICTS[name][1])
    if judged:
        verdict = row["verdicts"][name]
        text += f" {chip(verdict, _VERDICT_CHIPS[verdict])}"
    return f'<span class="beside">{text}</span>'


def _at_large_scales(summary: Summary, rows: Sequence[Row]) -> list[Row]:
    """Leave out the base scale, unless there is no other."""
    return [row for row in rows if row["scale"] != summary["base_scale"]] or list(rows)
