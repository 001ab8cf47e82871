"""The look of a study's figures: recipes' colours, panels, and their encoding in a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

WIDTH = 11.5  # inches
_MOST_SVG_BYTES = 300_000
_MOST_SVG_PANELS = 8
_LEGEND_COLUMN_WIDTH = 1.9  # inches

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


def data_uri(figure: Figure) -> str:
    """Encode a figure as a data URI: as SVG, or as PNG if the SVG would be large."""
    if len(figure.axes) <= _MOST_SVG_PANELS:
        content, kind = _encoded(figure, "svg"), "svg+xml"
        if len(content) <= _MOST_SVG_BYTES:
            return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return f"data:image/png;base64,{base64.b64encode(_encoded(figure, 'png')).decode()}"


def _encoded(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    # Equal tables give equal reports: no date, and no random names within an SVG.
    with matplotlib.rc_context({"svg.hashsalt": "lit_gfs"}):
        figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def panel_axes(
    count: int,
    columns: int,
    height: float,
    styles: dict[str, Style],
    marks: Sequence[Line2D] = (),
    widest: float = 4.0,
) -> tuple[Figure, list[Axes]]:
    """Lay out panels of a height in inches, in rows under a legend of recipes and other marks.

    Args:
        count: Number of panels.
        columns: Number of panels in a row.
        height: Height of a row.
        styles: Looks of the recipes in the legend.
        marks: Other marks in the legend.
        widest: Largest width of a panel, with its margins, in inches.
    """
    rows = math.ceil(count / columns)
    width = min(WIDTH, widest * columns)
    legend_columns = int(width / _LEGEND_COLUMN_WIDTH)
    legend_rows = math.ceil((len(styles) + len(marks)) / legend_columns)
    figure, array = axes_grid(rows, columns, width, height, top=0.28 + 0.2 * legend_rows)
    handles = [
        Line2D([], [], lw=1.8, ms=5, marker=style.marker, label=recipe, **line_style(style))
        for recipe, style in styles.items()
    ]
    figure.legend(
        handles=[*handles, *marks], loc="upper center", ncols=legend_columns, frameon=False, fontsize=9
    )
    axes = list(array.flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis in axes[:count]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e4e4e4", lw=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=7.5, length=2.5)
        axis.tick_params(which="minor", labelsize=6.5)  # of a logarithmic axis that spans few decades
    return figure, axes[:count]


def axes_grid(
    rows: int, columns: int, width: float, height: float, top: float, right: float = 0.1
) -> tuple[Figure, NDArray[Any]]:
    """Lay out axes with fixed margins in inches: measuring every text would take longer than drawing."""
    left, gap, below = 0.72, 0.62, 0.66
    total = top + height * rows
    figure = Figure(figsize=(width, total), dpi=110)
    FigureCanvasAgg(figure)
    panel = (width - left - right - gap * (columns - 1)) / columns
    axes = figure.subplots(
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
    return figure, axes


def line_style(style: Style) -> dict[str, Any]:
    """Return the look of a recipe's line, as arguments of matplotlib."""
    return {"color": style.colour, "linestyle": style.line}
