"""The figures of a study's report, drawn without matplotlib's global state."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from lit_gfs.metrics.figures import colour_limits, norm_pixels, short_names
from lit_gfs.study.summary import ALL, Summary
from lit_gfs.study.table import GradientNorms

WIDTH = 11.5  # inches
_MOST_SVG_BYTES = 300_000
_MOST_SVG_PANELS = 8
_MOST_LAYER_LABELS = 12
_LEGEND_COLUMNS = 6

# Okabe & Ito's palette without its yellow, then three of Paul Tol's: safe for colour-blind readers.
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#882255",
    "#332288",
    "#999933",
)
_BASELINE_COLOUR = "#3d3d3d"
_MARKERS = "osD^vPX<>p"
_LINES = ("-", "--", "-.", ":")


class Style(NamedTuple):
    """Look of a recipe in all figures."""

    colour: str
    marker: str
    line: str


def recipe_styles(recipes: Sequence[str], baseline: str) -> dict[str, Style]:
    """Give every recipe a colour and a marker; the baseline is dark grey and dashed."""
    others = [recipe for recipe in recipes if recipe != baseline]
    styles = {baseline: Style(_BASELINE_COLOUR, "o", "--")}
    for index, recipe in enumerate(others):
        lap, colour = divmod(index, len(_COLOURS))
        styles[recipe] = Style(
            _COLOURS[colour], _MARKERS[(index + 1) % len(_MARKERS)], _LINES[2 * lap % len(_LINES)]
        )
    return {recipe: styles[recipe] for recipe in recipes}


def scale_figure(summary: Summary) -> Figure:
    """Draw final scores against scale: interquartile means with intervals, and every run as a faint dot."""
    strata = [stratum["name"] for stratum in summary["strata"]]
    scales, recipes = summary["scales"], summary["recipes"]
    styles = recipe_styles(recipes, summary["baseline"])
    titles = [*(["all tasks, normalized"] if len(strata) > 1 else []), *strata]
    columns = min(4, len(titles))
    figure, axes = _panels(len(titles), columns, 2.6, styles)
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
                axis.plot(x, y, lw=1, ms=4.5, **_line(styles[recipe]), marker=styles[recipe].marker)
        axis.set_title(title, fontsize=8.5)
        axis.set_xticks(range(len(scales)), scales, fontsize=8)
        axis.set_xlim(-0.5, len(scales) - 0.5)
        axis.set_ylabel("normalized score" if over_all else "final score", fontsize=8)
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
    figure, axes = _panels(len(panels), columns, 2.4, styles)
    for axis, (stratum, scale) in zip(axes, panels, strict=True):
        for recipe in recipes:
            found = _find(summary["groups"], stratum=stratum, scale=scale, recipe=recipe)
            curve = found and found["curve" if against == "steps" else "curve_seconds"]
            if not curve:
                continue
            axis.plot(curve["x"], curve["score"], lw=1.4, **_line(styles[recipe]))
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
    figure, grid = _grid(len(recipes), 2 * len(scales), WIDTH, height, top=0.25, right=0.9)
    for row, recipe in enumerate(recipes):
        for column in range(2 * len(scales)):
            scale, axis = scales[column // 2], grid[row, column]
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


def data_uri(figure: Figure) -> str:
    """Encode a figure as a data URI: as SVG, or as PNG if the SVG would be large."""
    if len(figure.axes) <= _MOST_SVG_PANELS:
        content, kind = _encoded(figure, "svg"), "svg+xml"
        if len(content) <= _MOST_SVG_BYTES:
            return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return f"data:image/png;base64,{base64.b64encode(_encoded(figure, 'png')).decode()}"


def _encoded(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=kind)
    return content.getvalue()


def _panels(count: int, columns: int, height: float, styles: dict[str, Style]) -> tuple[Figure, list[Axes]]:
    """Lay out panels of a height in inches, in rows under a legend."""
    rows, legend_rows = math.ceil(count / columns), math.ceil(len(styles) / _LEGEND_COLUMNS)
    figure, grid = _grid(rows, columns, min(WIDTH, 4.0 * columns), height, top=0.2 + 0.24 * legend_rows)
    handles = [
        Line2D([], [], lw=1.8, ms=5, marker=style.marker, label=recipe, **_line(style))
        for recipe, style in styles.items()
    ]
    figure.legend(handles=handles, loc="upper center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=9)
    axes = list(grid.flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis in axes[:count]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e4e4e4", lw=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=7.5, length=2.5)
    return figure, axes[:count]


def _grid(
    rows: int, columns: int, width: float, height: float, top: float, right: float = 0.1
) -> tuple[Figure, NDArray[Any]]:
    """Lay out axes with fixed margins in inches: measuring every text would take longer than drawing."""
    left, gap, below = 0.72, 0.62, 0.66
    total = top + height * rows
    figure = Figure(figsize=(width, total), dpi=110)
    FigureCanvasAgg(figure)
    panel = (width - left - right - gap * (columns - 1)) / columns
    grid = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": left / width,
            "right": 1 - right / width,
            "top": 1 - (top + 0.1) / total,
            "bottom": (below - 0.1) / total,
            "wspace": gap / panel,
            "hspace": below / (height - below),
        },
    )
    return figure, grid


def _line(style: Style) -> dict[str, Any]:
    return {"color": style.colour, "linestyle": style.line}


def _find(rows: Sequence[dict[str, Any]], **wanted: str) -> dict[str, Any] | None:
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)
