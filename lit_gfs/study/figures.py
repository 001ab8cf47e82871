"""The figures of a study's report, drawn without matplotlib's global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

from lit_gfs.metrics.figures import colour_limits, norm_pixels, short_names
from lit_gfs.study.panels import WIDTH, axes_grid, line_style, panel_axes, recipe_styles
from lit_gfs.study.summary import ALL, Summary
from lit_gfs.study.table import GradientNorms

_MOST_LAYER_LABELS = 12
_GREY = "#8a8f96"


def scale_figure(summary: Summary) -> Figure:
    """Draw final scores against scale: interquartile means with intervals, and every run as a faint dot."""
    strata = [stratum["name"] for stratum in summary["strata"]]
    scales, recipes = summary["scales"], summary["recipes"]
    styles = recipe_styles(recipes, summary["baseline"])
    titles = [*(["all tasks, normalized"] if len(strata) > 1 else []), *strata]
    columns = min(4, len(titles))
    figure, axes = panel_axes(len(titles), columns, 2.6, styles)
    for axis, title in zip(axes, titles, strict=True):
        over_all = title not in strata
        for index, recipe in enumerate(recipes):
            # Recipes stand side by side, so that their intervals do not hide each other.
            shift = 0.5 * (index - (len(recipes) - 1) / 2) / max(len(recipes), 4)
            points = []
            for place, scale in enumerate(scales):
                if over_all:
                    found = _find(summary["aggregates"], set=ALL, scale=scale, recipe=recipe)
                    score = found and found["normalized_score"]
                else:
                    found = _find(summary["groups"], stratum=title, scale=scale, recipe=recipe)
                    score = found and found["final_score"]
                    dots = [
                        final for final in (found["finals"].values() if found else ()) if final is not None
                    ]
                    axis.plot(
                        [place + shift] * len(dots),
                        dots,
                        ".",
                        color=styles[recipe].colour,
                        alpha=0.3,
                        ms=5,
                        mew=0,
                    )
                if score and score["value"] is not None:
                    low, high = score["interval"] or (score["value"], score["value"])
                    points.append((place + shift, score["value"], low, high))
            if points:
                x, y, low, high = zip(*points, strict=True)
                axis.vlines(x, low, high, color=styles[recipe].colour, lw=1.6)
                axis.plot(x, y, lw=1, ms=4.5, **line_style(styles[recipe]), marker=styles[recipe].marker)
        axis.set_title(title, fontsize=8.5)
        axis.set_xticks(range(len(scales)), scales, fontsize=8)
        axis.set_xlim(-0.5, len(scales) - 0.5)
        axis.set_ylabel("normalized score" if over_all else "final score", fontsize=8)
    return figure


def ladder_figure(summary: Summary, ladder: dict[str, Any]) -> Figure:
    """Draw final scores against depth or width: a panel per task, a line per recipe.

    A star marks the largest network without loss by the estimate, a ring that by the interval. The dotted
    line is the score of the small baseline.

    Args:
        summary: The study's figures.
        ladder: One of its ladders.
    """
    recipes, scales = summary["recipes"], ladder["scales"]
    styles = recipe_styles(recipes, summary["baseline"])
    strata = [stratum["name"] for stratum in summary["strata"]]
    ticks = np.log2(ladder["sizes"]) if ladder["sizes"] else np.arange(len(scales))
    apart = 0.06 * float(np.diff(np.sort(ticks)).min())
    marks = [
        Line2D([], [], color=_GREY, lw=1, ls=":", label="small baseline"),
        Line2D([], [], color=_GREY, lw=0, marker="*", ms=12, label="largest by estimate"),
        Line2D([], [], color=_GREY, lw=0, marker="o", ms=12, mfc="none", label="largest by interval"),
    ]
    figure, axes = panel_axes(len(strata), min(4, len(strata)), 2.6, styles, marks)
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
    scales, recipes = summary["scales"], summary["recipes"]
    strata = [stratum["name"] for stratum in summary["strata"]]
    styles = recipe_styles(recipes, summary["baseline"])
    panels = [(stratum, scale) for stratum in strata for scale in scales]
    columns = len(scales) * min(len(strata), max(1, 4 // len(scales)))
    figure, axes = panel_axes(len(panels), columns, 2.4, styles)
    for axis, (stratum, scale) in zip(axes, panels, strict=True):
        for recipe in recipes:
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
    for first in range(0, len(panels), len(scales)):
        row = axes[first : first + len(scales)]
        ends = [axis.get_ylim() for axis in row if axis.lines]
        for axis in row if ends else ():
            axis.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    return figure


def heat_map_figure(
    norms: dict[tuple[str, str], GradientNorms], recipes: Sequence[str], scales: Sequence[str], x_label: str
) -> Figure:
    """Draw the gradient norms of a stratum's layers: a row of panels for each recipe, raw beside applied.

    All panels share one logarithmic colour scale.

    Args:
        norms: Norms of one run by scale and recipe; at least one.
        recipes: The order of the rows; recipes without norms are left out.
        scales: The order of the columns; scales without norms are left out.
        x_label: Unit of the steps.
    """
    recipes = [recipe for recipe in recipes if any(key[1] == recipe for key in norms)]
    scales = [scale for scale in scales if any(key[0] == scale for key in norms)]
    with np.errstate(divide="ignore"):
        cells = {key: [np.log10(part) for part in (run.raw, run.applied)] for key, run in norms.items()}
    limits = colour_limits(np.concatenate([np.ravel(part) for pair in cells.values() for part in pair]))
    colours = ScalarMappable(Normalize(*limits), colormaps["viridis"])
    tallest = max(len(run.layers) for run in norms.values())
    height = 0.62 + 0.13 * min(max(tallest, 6), _MOST_LAYER_LABELS)
    figure, array = axes_grid(len(recipes), 2 * len(scales), WIDTH, height, top=0.25, right=0.9)
    for row, recipe in enumerate(recipes):
        for column in range(2 * len(scales)):
            scale, axis = scales[column // 2], array[row, column]
            kind = column % 2
            if (scale, recipe) not in norms:
                axis.set_axis_off()
                continue
            run = norms[scale, recipe]
            axis.imshow(
                norm_pixels(cells[scale, recipe][kind], colours), aspect="auto", interpolation="nearest"
            )
            axis.set_title(f"{recipe}\n{scale} · {('raw', 'applied')[kind]}", fontsize=7)
            ticks = EngFormatter(sep="")
            ends = sorted({0, len(run.steps) - 1})
            axis.set_xticks(ends, [ticks(run.steps[end]) for end in ends], fontsize=6.5)
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


def _find(rows: Sequence[dict[str, Any]], **wanted: str) -> dict[str, Any] | None:
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)
