"""The figures of a study's report, drawn without matplotlib's global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

from lit_gfs.metrics.figures import colour_limits, norm_pixels, short_names
from lit_gfs.study.report.panels import WIDTH, Style, axes_grid, line_style, panel_axes, recipe_styles
from lit_gfs.study.results.summary import ALL, Summary
from lit_gfs.study.results.table import GradientNorms

MOST_COLUMNS = 4
OVERVIEW_WIDTH = 5.4  # inches
_RIGHT_OF_HEAT_MAPS = 1.0  # inches, for the colour bar
_MOST_LAYER_LABELS = 12
_MOST_PAIRS = 3
"""Pairs of heat maps, raw and applied, in a row."""
_MOST_LETTERS_IN_A_ROW = 24
"""Longer names of all scales together are slanted."""
_GREY = "#8a8f96"


def overview_figure(summary: Summary) -> Figure | None:
    """Draw normalized scores over all tasks against scale: a line per recipe, with intervals.

    Hollow points cover fewer tasks than the others. The dotted lines are floor and reference.

    Args:
        summary: The study's figures.

    Returns:
        The figure, or ``None`` if no task has a floor and a reference.
    """
    rows = [row for row in summary["aggregates"] if row["set"] == ALL]
    known = [row for row in rows if row["normalized_score"]["value"] is not None]
    if not known:
        return None
    scales, recipes = _with_results(summary, "scale"), _with_results(summary, "recipe")
    most = max(row["normalized_score"]["strata"] for row in known)
    figure, (axis,) = panel_axes(1, 1, 3.3, _styles(summary), widest=OVERVIEW_WIDTH)
    for level in (0, 1):
        axis.axhline(level, color=_GREY, lw=0.8, ls=":")
    for index, recipe in enumerate(recipes):
        style, shift = _styles(summary)[recipe], _beside(index, len(recipes))
        points = [
            (scales.index(row["scale"]) + shift, row["normalized_score"])
            for row in known
            if row["recipe"] == recipe
        ]
        for x, score in points:
            axis.vlines(x, *(score["interval"] or [score["value"]] * 2), color=style.colour, lw=1.8)
        axis.plot(
            [x for x, _ in points], [score["value"] for _, score in points], lw=1.2, **line_style(style)
        )
        for x, score in points:
            face = style.colour if score["strata"] == most else "white"
            axis.plot(x, score["value"], style.marker, ms=6, mec=style.colour, mfc=face)
    _label_scales(axis, scales)
    axis.set_ylabel("normalized score, all tasks", fontsize=9)
    axis.tick_params(labelsize=9)
    return figure


def scale_figure(summary: Summary) -> Figure:
    """Draw final scores against scale, a panel per task.

    Points are interquartile means with intervals, and every run is a faint dot.
    """
    strata = _with_results(summary, "stratum")
    scales, recipes = _with_results(summary, "scale"), _with_results(summary, "recipe")
    styles = _styles(summary)
    figure, axes = panel_axes(len(strata), min(MOST_COLUMNS, len(strata)), 2.6, styles)
    for axis, stratum in zip(axes, strata, strict=True):
        for index, recipe in enumerate(recipes):
            style, shift = styles[recipe], _beside(index, len(recipes))
            points = []
            for place, scale in enumerate(scales):
                found = _find(summary["groups"], stratum=stratum, scale=scale, recipe=recipe)
                if found is None:
                    continue
                dots = [final for final in found["finals"].values() if final is not None]
                axis.plot([place + shift] * len(dots), dots, ".", color=style.colour, alpha=0.3, ms=5, mew=0)
                score = found["final_score"]
                if score["value"] is not None:
                    points.append((place + shift, score["value"]))
                    ends = score["interval"] or [score["value"]] * 2
                    axis.vlines(place + shift, *ends, color=style.colour, lw=1.6)
            if points:
                x, y = zip(*points, strict=True)
                axis.plot(x, y, lw=1, ms=4.5, **line_style(style), marker=style.marker)
        axis.set_title(stratum, fontsize=8.5)
        _label_scales(axis, scales)
        axis.set_ylabel("final score", fontsize=8)
    return figure


def ladder_figure(summary: Summary, ladder: dict[str, Any]) -> Figure:
    """Draw final scores against depth or width: a panel per task, a line per recipe.

    A star marks the largest network without loss by the estimate, a ring that by the interval. The dotted
    line is the score of the small baseline.

    Args:
        summary: The study's figures.
        ladder: One of its ladders.
    """
    recipes, scales = _with_results(summary, "recipe"), ladder["scales"]
    styles = _styles(summary)
    strata = _with_results(summary, "stratum")
    ticks = np.log2(ladder["sizes"]) if ladder["sizes"] else np.arange(len(scales))
    apart = 0.06 * float(np.diff(np.sort(ticks)).min())
    marks = [
        Line2D([], [], color=_GREY, lw=1, ls=":", label="small baseline"),
        Line2D([], [], color=_GREY, lw=0, marker="*", ms=12, label="largest by estimate"),
        Line2D([], [], color=_GREY, lw=0, marker="o", ms=12, mfc="none", label="largest by interval"),
    ]
    figure, axes = panel_axes(len(strata), min(MOST_COLUMNS, len(strata)), 2.6, styles, marks)
    for axis, stratum in zip(axes, strata, strict=True):
        small = _find(
            summary["groups"], stratum=stratum, scale=summary["base_scale"], recipe=summary["baseline"]
        )
        if small and small["final_score"]["value"] is not None:
            axis.axhline(small["final_score"]["value"], color=_GREY, lw=1, ls=":")
        for index, recipe in enumerate(recipes):
            points: dict[str, tuple[float, float]] = {}
            for scale, tick in zip(scales, ticks, strict=True):
                found = _find(summary["groups"], stratum=stratum, scale=scale, recipe=recipe)
                if found is None or found["final_score"]["value"] is None:
                    continue
                # Recipes stand side by side, so that their intervals do not hide each other.
                x, y = float(tick) + apart * (index - (len(recipes) - 1) / 2), found["final_score"]["value"]
                points[scale] = (x, y)
                axis.vlines(
                    x, *(found["final_score"]["interval"] or (y, y)), color=styles[recipe].colour, lw=1.6
                )
            if not points:
                continue
            axis.plot(
                *zip(*points.values(), strict=True),
                lw=1.2,
                ms=4,
                marker=styles[recipe].marker,
                **line_style(styles[recipe]),
            )
            largest = _find(ladder["largest_without_loss"], stratum=stratum, recipe=recipe) or {}
            for key, marker, face in (("by_interval", "o", "none"), ("by_estimate", "*", None)):
                if (scale := largest.get(key)) in points:
                    colour = styles[recipe].colour
                    axis.plot(*points[scale], marker, ms=12, mec=colour, mfc=face or colour, zorder=3)
        axis.set_title(stratum, fontsize=8.5)
        axis.set_xticks(ticks, ladder["sizes"] or scales, fontsize=8)
        axis.set_xlabel(ladder["along"], fontsize=8)
        axis.set_ylabel("final score", fontsize=8)
    return figure


def curve_figure(summary: Summary, against: str = "steps") -> Figure:
    """Draw learning curves: interquartile mean over seeds, 95% interval shaded.

    Args:
        summary: The study's figures.
        against: ``steps`` or ``seconds``.
    """
    strata, scales = _with_results(summary, "stratum"), _with_results(summary, "scale")
    styles = _styles(summary)
    panels = [(stratum, scale) for stratum in strata for scale in scales]
    columns = len(scales) * min(len(strata), max(1, MOST_COLUMNS // len(scales)))
    if columns > MOST_COLUMNS:
        panels = [each for each in panels if _find(summary["groups"], stratum=each[0], scale=each[1])]
        columns = MOST_COLUMNS
    figure, axes = panel_axes(len(panels), columns, 2.4, styles)
    for axis, (stratum, scale) in zip(axes, panels, strict=True):
        for recipe in styles:
            found = _find(summary["groups"], stratum=stratum, scale=scale, recipe=recipe)
            curve = found and found["curve" if against == "steps" else "curve_seconds"]
            if not curve:
                continue
            axis.plot(curve["x"], curve["score"], lw=1.4, **line_style(styles[recipe]))
            if curve["low"] is not None:
                axis.fill_between(
                    curve["x"], curve["low"], curve["high"], color=styles[recipe].colour, alpha=0.16, lw=0
                )
        if not axis.lines:
            axis.text(0.5, 0.5, "no curve", ha="center", va="center", transform=axis.transAxes, color="#777")
        axis.set_title(f"{stratum} · {scale}", fontsize=8.5)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set_xlabel(summary["score"]["x_label"] if against == "steps" else "seconds", fontsize=8)
    # One range of scores for all scales of a stratum: scales are compared by eye.
    for name in strata:
        row = [axis for axis, (stratum, _) in zip(axes, panels, strict=True) if stratum == name]
        ends = [axis.get_ylim() for axis in row if axis.lines]
        for axis in row if ends else ():
            axis.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    return figure


def heat_map_figure(
    norms: dict[tuple[str, str], GradientNorms], recipes: Sequence[str], scales: Sequence[str], x_label: str
) -> Figure:
    """Draw the gradient norms of a stratum's layers, raw beside applied, recipe by recipe.

    All panels share one logarithmic colour scale.

    Args:
        norms: Norms of one run by scale and recipe; at least one.
        recipes: The order of the recipes; those without norms are left out.
        scales: The order of a recipe's scales; those without norms are left out.
        x_label: Unit of the steps.
    """
    keys = [(scale, recipe) for recipe in recipes for scale in scales if (scale, recipe) in norms]
    with np.errstate(divide="ignore"):
        cells = {key: [np.log10(part) for part in (norms[key].raw, norms[key].applied)] for key in keys}
    limits = colour_limits(np.concatenate([np.ravel(part) for pair in cells.values() for part in pair]))
    colours = ScalarMappable(Normalize(*limits), colormaps["viridis"])
    tallest = max(len(run.layers) for run in norms.values())
    height = 0.62 + 0.13 * min(max(tallest, 6), _MOST_LAYER_LABELS)
    pairs = min(_MOST_PAIRS, len(scales), len(keys))
    figure, array = axes_grid(
        math.ceil(len(keys) / pairs), 2 * pairs, WIDTH, height, top=0.25, right=_RIGHT_OF_HEAT_MAPS
    )
    for axis in array.flat[2 * len(keys) :]:
        axis.set_axis_off()
    panels = [(key, kind) for key in keys for kind in (0, 1)]
    for axis, (key, kind) in zip(array.flat, panels, strict=False):
        run = norms[key]
        axis.imshow(norm_pixels(cells[key][kind], colours), aspect="auto", interpolation="nearest")
        axis.set_title(f"{key[1]}\n{key[0]} · {('raw', 'applied')[kind]}", fontsize=7)
        ends = sorted({0, len(run.steps) - 1})
        axis.set_xticks(ends, [_short_steps(run.steps[end]) for end in ends], fontsize=6.5)
        # The outer labels stay within the panel, clear of its neighbour and of the colour bar.
        for label, side in zip(axis.get_xticklabels(), ("left", "right"), strict=False):
            label.set_horizontalalignment(side)
        every = math.ceil(len(run.layers) / _MOST_LAYER_LABELS)
        names = short_names(run.layers, 10)[::every] if kind == 0 else []
        axis.set_yticks(range(0, len(run.layers), every) if names else [], names, fontsize=6)
        axis.tick_params(length=2)
        axis.set_xlabel(x_label, fontsize=6.5, labelpad=-4)
    # Place of the colour bar beside the panels, in inches; at most as tall as two rows.
    total, tall = figure.get_figheight(), min(2 * height, figure.get_figheight() - 0.9)
    place = (1 - 0.75 / WIDTH, 1 - (0.35 + tall) / total, 0.14 / WIDTH, tall / total)
    bar = figure.colorbar(colours, cax=figure.add_axes(place), extend="both")
    bar.ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("$10^{{{x:.0f}}}$"))
    bar.ax.tick_params(labelsize=7)
    bar.set_label("gradient norm", fontsize=8)
    return figure


def _styles(summary: Summary) -> dict[str, Style]:
    """Return the looks of the recipes with results; those of other recipes keep their colours for later."""
    styles = recipe_styles(summary["recipes"], summary["baseline"])
    return {recipe: styles[recipe] for recipe in _with_results(summary, "recipe")}


def _with_results(summary: Summary, factor: str) -> list[str]:
    """List the strata, scales or recipes of which a cell has ended; all of them before the first has."""
    names = {
        "stratum": [stratum["name"] for stratum in summary["strata"]],
        "scale": summary["scales"],
        "recipe": summary["recipes"],
    }[factor]
    found = {group[factor] for group in summary["groups"]}
    return [name for name in names if name in found] or names


def _beside(index: int, count: int) -> float:
    """Return the place of a recipe beside the others, so that their intervals do not hide each other."""
    return 0.5 * (index - (count - 1) / 2) / max(count, 4)


def _label_scales(axis: Axes, scales: Sequence[str]) -> None:
    slanted = sum(map(len, scales)) > _MOST_LETTERS_IN_A_ROW
    axis.set_xticks(range(len(scales)), scales, fontsize=8, rotation=45 if slanted else 0)
    axis.set_xlim(-0.5, len(scales) - 0.5)


def _short_steps(steps: int) -> str:
    """Write ``99.3k`` for 99,328 steps."""
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if steps >= size:
            return f"{steps / size:.3g}{unit}"
    return str(steps)


def _find(rows: Sequence[dict[str, Any]], **wanted: str) -> dict[str, Any] | None:
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)
