"""The figures of a study: aggregates and comparisons with intervals, as one structure for JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_gfs.metrics.intervals import Floats, interquartile_means
from lit_gfs.study.planning.plan import Study
from lit_gfs.study.results.comparisons import (
    NO_SPEED,
    Comparison,
    against,
    compare,
    headline,
    size_hurts,
)
from lit_gfs.study.results.curves import GroupCurve
from lit_gfs.study.results.estimates import Figure, figure, missing
from lit_gfs.study.results.groups import Group, Stratum, failed, read_stratum, stratum_names
from lit_gfs.study.results.ladders import find_ladders, largest_without_loss
from lit_gfs.study.results.table import FINISHED, MISSING, Table
from lit_gfs.utils.atomic_files import replacing_text

SUMMARY_FILE = "summary.json"
TUNED, HELD_OUT, ALL, STRATUM = "tuned tasks", "held-out tasks", "all tasks", "stratum"
SIZE_HURTS, SIZE_DOES_NOT_HURT = "size hurts", "size does not hurt"
AMONG_TUNED, AMONG_HELD_OUT = ", tuned tasks", ", held-out tasks"
"""Endings of the names of sets that tell by size."""

Summary = dict[str, Any]
_Key = tuple[str, str]
_Hurts = dict[str, bool | None]  # by scale


def summarize(study: Study, table: Table, resamples: int = 2_000, seed: int = 0) -> Summary:
    """Compute every figure of a study.

    Args:
        study: The plan, with orders, floors and comparisons.
        table: The study's tables.
        resamples: Number of resamples of each bootstrap.
        seed: Seed of all resamples.

    Returns:
        Figures. Each estimate is ``{"value", "interval": [low, high], "note", "strata"}``. An undefined value
        or an unknown interval is ``null``, and the note gives the reason. An end without a bound is ``null``
        too. Numbers have 6 significant digits, and the same study and table give the same figures.
    """
    recipes = [recipe for recipe in study.factors["recipe"] if _ran(table, "recipe", recipe)]
    scales = [scale for scale in study.factors["scale"] if _ran(table, "scale", scale)]
    keys = [(scale, recipe) for scale in scales for recipe in recipes]
    baselines = [study.compare.baseline, *filter(None, [study.compare.tuned_baseline])]
    tuned: dict[str, bool] = {}
    hurts: dict[str, _Hurts] = {}
    comparisons: dict[str, dict[_Key, list[Comparison]]] = {}
    groups = []
    for name in stratum_names(study, table.runs):
        stratum = read_stratum(study, table, name, resamples, seed)
        tuned[name] = stratum.tuned
        comparisons[name] = {
            key: [compare(stratum, *key, study.compare.of(recipe), study.score) for recipe in baselines]
            for key in keys
            if key in stratum.groups
        }
        hurts[name] = {scale: _size_hurts(study, stratum, scale) for scale in scales}
        groups += [
            {
                "stratum": name,
                "scale": key[0],
                "recipe": key[1],
                **_group(stratum.groups[key]),
                "steps_to_reach": _steps_to_reach(compared[0])
                if study.score.measures_speed
                else missing(NO_SPEED),
            }
            for key, compared in comparisons[name].items()
        ]
    aggregates = _aggregates(study, keys, tuned, hurts, comparisons)
    ladders = find_ladders(study, scales)
    return _rounded(
        {
            "study": study.name,
            "description": study.description,
            "score": {
                "tag": study.score.tag,
                "curve_tag": study.score.curve_tag,
                "x_label": study.score.x_label,
            },
            "baseline": study.compare.baseline,
            "tuned_baseline": study.compare.tuned_baseline or None,
            "base_scale": study.compare.base_scale,
            "recipes": recipes,
            "scales": scales,
            "strata": [
                {"name": name, "tuned": is_tuned, "size_hurts": hurts[name]}
                for name, is_tuned in tuned.items()
            ],
            "cells": _counts(table),
            "failures": _failures(table),
            "resamples": resamples,
            "seed": seed,
            "aggregates": aggregates,
            "ladders": [
                {
                    **ladder._asdict(),
                    "largest_without_loss": largest_without_loss(
                        study.compare, ladder, [row for row in aggregates if row["set"] == STRATUM]
                    ),
                }
                for ladder in ladders
            ],
            "groups": groups,
        }
    )


def write_summary(directory: Path, summary: Summary) -> Path:
    """Write ``summary.json``; equal summaries give equal bytes."""
    path = directory / SUMMARY_FILE
    with replacing_text(path) as file:
        json.dump(summary, file, sort_keys=True, indent=1, allow_nan=False)
    return path


def _size_hurts(study: Study, stratum: Stratum, scale: str) -> bool | None:
    if scale == study.compare.base_scale:
        return None
    baseline = study.compare.baseline
    return size_hurts(
        stratum.groups.get((scale, baseline)), stratum.groups.get((study.compare.base_scale, baseline))
    )


def _sets(tuned: dict[str, bool], hurts: dict[str, _Hurts], scale: str) -> dict[str, list[str]]:
    """List the strata of every set at a scale."""
    sets = {
        TUNED: [name for name in tuned if tuned[name]],
        HELD_OUT: [name for name in tuned if not tuned[name]],
        ALL: list(tuned),
    }
    for title, wanted in ((SIZE_HURTS, True), (SIZE_DOES_NOT_HURT, False)):
        names = [name for name in tuned if hurts[name][scale] is wanted]
        sets[title + AMONG_TUNED] = [name for name in names if tuned[name]]
        sets[title + AMONG_HELD_OUT] = [name for name in names if not tuned[name]]
        sets[title] = names
    return sets


def _aggregates(
    study: Study,
    keys: Sequence[_Key],
    tuned: dict[str, bool],
    hurts: dict[str, _Hurts],
    comparisons: dict[str, dict[_Key, list[Comparison]]],
) -> list[dict[str, Any]]:
    """Return the headlines of every recipe and scale over sets of strata, then of each stratum."""
    sets = {scale: _sets(tuned, hurts, scale) for scale, _ in keys}
    chosen = [
        (title, "", key, sets[key[0]][title]) for title in next(iter(sets.values()), {}) for key in keys
    ]
    chosen += [(STRATUM, name, key, [name]) for name in tuned for key in keys]
    rows = []
    for title, stratum, key, names in chosen:
        present = [comparisons[name][key] for name in names if key in comparisons[name]]
        if present:
            plan, speed = study.compare, study.score.measures_speed
            row = {
                "set": title,
                "stratum": stratum,
                "scale": key[0],
                "recipe": key[1],
                "tasks": names,
                **headline([first for first, *_ in present]),
                **against(*key, plan, [first for first, *_ in present], speed),
            }
            if plan.tuned_baseline:
                others = [second for _, second in present]
                row["tuned_baseline"] = against(*key, plan.of(plan.tuned_baseline), others, speed)
            rows.append(row)
    return rows


def _group(group: Group) -> dict[str, Any]:
    """Return the figures of one recipe's runs at one scale in one stratum."""
    finished = [run for run in group.runs if not failed(run)]
    seconds = [run.wall_seconds for run in finished if run.wall_seconds is not None]
    processor = [run.cpu_seconds for run in finished if run.cpu_seconds is not None]
    return {
        "final_score": _mean(group.scores, "a run failed, and the floor is not known"),
        "normalized_score": _mean(group.normalized, "no floor and reference"),
        "instability": _mean(group.instabilities, "never learned"),
        "seeds": len(group.runs),
        "failed": len(group.runs) - len(finished),
        "learned": sum(run.instability is not None for run in finished),
        "wall_seconds": sum(seconds) / len(seconds) if seconds else None,
        "cpu_seconds": sum(processor) / len(processor) if processor else None,
        "parameters": max((run.parameters for run in finished if run.parameters is not None), default=None),
        "finals": {run.levels["seed"]: None if failed(run) else run.final_score for run in group.runs},
        "curve": _curve(group.by_steps, len(group.runs)),
        "curve_seconds": _curve(group.by_seconds, len(group.runs)),
    }


def _mean(sample: Floats | None, unknown: str) -> Figure:
    return missing(unknown) if sample is None else figure(interquartile_means([sample]), sample.shape[-1])


def _steps_to_reach(comparison: Comparison) -> Figure:
    steps, own = comparison.steps_to_reach, comparison.own
    if own is None:
        return missing("no baseline at this scale")
    if steps is None:
        return missing("every run failed")
    if math.isinf(steps[0]):
        return missing("never")
    return figure(
        steps, min(len(comparison.group.runs), len(own.runs)), undefined="baseline did not learn", worst=0.0
    )


def _curve(curve: GroupCurve | None, runs: int) -> dict[str, Any] | None:
    """Return the curve of a group and its interval; a single run has no interval."""
    if curve is None:
        return None
    low, high = np.quantile(curve.values[1:], [0.025, 0.975], axis=0) if runs > 1 else (None, None)
    return {
        "x": curve.x.tolist(),
        "score": curve.values[0].tolist(),
        "low": None if low is None else low.tolist(),
        "high": None if high is None else high.tolist(),
    }


def _counts(table: Table) -> dict[str, int]:
    return {
        "planned": len(table.runs),
        "finished": sum(run.status == FINISHED and not failed(run) for run in table.runs),
        "failed": sum(map(failed, table.runs)),
        "missing": sum(run.status == MISSING for run in table.runs),
    }


def _failures(table: Table) -> list[dict[str, str]]:
    return [
        {
            "cell": run.cell,
            "status": "failed" if failed(run) else run.status,
            "error": run.error or ("not run" if run.status == MISSING else "finished without a score"),
        }
        for run in table.runs
        if failed(run) or run.status == MISSING
    ]


def _ran(table: Table, factor: str, level: str) -> bool:
    return any(run.levels[factor] == level for run in table.runs)


def _rounded(value: Any) -> Any:
    """Round every number to 6 significant digits; numbers that are not finite become ``None``."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
