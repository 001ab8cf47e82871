"""Figures of the metrics, drawn without global state of Matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from torch import Tensor

ZERO_COLOUR = "#c4c4c4"
NOT_FINITE_COLOUR = "#e8112d"
_MAX_LABELS = 20
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def gradient_heat_map(
    layers: Sequence[str],
    steps: Sequence[int],
    raw: Tensor,
    applied: Tensor,
    x_label: str = "environment steps",
) -> Figure:
    """Draw raw and applied layer gradient norms over a run, on one logarithmic colour scale.

    Several measurements may have the same environment step, so all columns have equal width and the ticks
    show their steps. The colours range from the 1st to the 99th percentile of all cells, so a few extreme
    norms do not hide the differences of the others.

    Args:
        layers: Names of the L layers, from top to bottom.
        steps: The first step of each of the C columns, not decreasing; C is at least 1.
        raw: log10 of the norms before interventions and clipping, ``(C, L)``. Minus infinity means zero; NaN
            and plus infinity mean not finite.
        applied: log10 of the norms that the optimizer received, ``(C, L)``.
        x_label: Label of the x axis, the unit of ``steps``.

    Returns:
        The figure, on an Agg canvas.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    panels = {"raw": raw.T.double().numpy(), "applied": applied.T.double().numpy()}
    scale = Normalize(*colour_limits(np.stack(list(panels.values()))))
    colours = ScalarMappable(scale, colormaps["viridis"])

    # Fixed margins in inches keep the axes in place from one figure of a run to the next. An automatic layout
    # would also take longer than drawing, because it measures all texts.
    width, height = 9.0, 1.7 + 0.24 * min(max(len(layers), 8), _MAX_LABELS)
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        1,
        3,
        width_ratios=(1, 1, 0.06),
        wspace=0.1,
        left=1.9 / width,
        right=1 - 0.95 / width,
        bottom=1.05 / height,
        top=1 - 0.45 / height,
    )
    every = math.ceil(len(layers) / _MAX_LABELS)
    for column, (title, cells) in enumerate(panels.items()):
        axis = figure.add_subplot(grid[column])
        axis.imshow(norm_pixels(cells, colours), aspect="auto", interpolation="nearest")
        axis.set_title(title, fontsize=15)
        axis.set_xticks(*_step_ticks(steps), fontsize=12)
        axis.set_xlabel(x_label, fontsize=12)
        rows = range(0, len(layers), every)
        axis.set_yticks(rows, short_names(layers)[::every] if column == 0 else [""] * len(rows), fontsize=12)
        axis.tick_params(left=column == 0, length=3)
        if every == 1:
            axis.hlines(np.arange(1, len(layers)) - 0.5, *axis.get_xlim(), color="white", linewidth=0.6)

    bar = figure.colorbar(colours, cax=figure.add_subplot(grid[2]), extend="both")
    bar.ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda exponent, _: power_of_ten(exponent)))
    bar.ax.tick_params(labelsize=12)
    bar.set_label("gradient norm", fontsize=13)
    figure.legend(
        handles=[
            Patch(color=ZERO_COLOUR, label="zero or no gradient"),
            Patch(color=NOT_FINITE_COLOUR, label="not finite"),
        ],
        loc="lower center",
        ncols=2,
        frameon=False,
        fontsize=12,
    )
    return figure


def short_names(names: Sequence[str], longest: int = 20) -> list[str]:
    """Shorten dotted names for a figure.

    Args:
        names: Dotted names.
        longest: Largest number of characters. A longer name loses leading parts, then leading characters.

    Returns:
        The names without their common leading parts. Different names stay different: where two would be
        equal, they keep their beginning and their end.
    """
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    shortened = [_short_name(part[shared:], longest) for part in parts]
    return [
        name if shortened.count(name) == 1 else _both_ends(".".join(part[shared:]), longest)
        for name, part in zip(shortened, parts, strict=True)
    ]


def _short_name(parts: Sequence[str], longest: int) -> str:
    for first in range(len(parts)):
        name = ".".join(parts[first:])
        if len(name) <= longest:
            return name
    return "…" + parts[-1][-(longest - 1) :]


def _both_ends(name: str, longest: int) -> str:
    if len(name) <= longest:
        return name
    start = (longest - 1) // 3
    return f"{name[:start]}…{name[start + 1 - longest :]}"


def norm_pixels(cells: np.ndarray, colours: ScalarMappable) -> np.ndarray:
    """Map gradient norms to colours.

    Args:
        cells: log10 of the norms, ``(rows, columns)``. Minus infinity means zero; NaN and plus infinity mean
            not finite.
        colours: The colour scale.

    Returns:
        RGBA pixels ``(rows, columns, 4)``.
    """
    from matplotlib.colors import to_rgba

    pixels = colours.to_rgba(cells)
    pixels[np.isneginf(cells)] = to_rgba(ZERO_COLOUR)
    pixels[np.isnan(cells) | np.isposinf(cells)] = to_rgba(NOT_FINITE_COLOUR)
    return pixels


def power_of_ten(exponent: float) -> str:
    """Write ``10⁻³`` for -3, rounded: as a formula, it would take a good part of a figure's time."""
    return "10" + str(round(exponent)).translate(_RAISED)


def colour_limits(cells: np.ndarray) -> tuple[float, float]:
    """Return the limits of a colour scale: the 1st and 99th percentile, at least two decades apart.

    Args:
        cells: log10 of norms, of any shape; non-finite cells are ignored.
    """
    finite = cells[np.isfinite(cells)]
    if finite.size == 0:
        return -1.0, 1.0
    low, high = np.percentile(finite, [1, 99])
    margin = max(0.0, 2.0 - (high - low)) / 2
    return float(low - margin), float(high + margin)


def _step_ticks(steps: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    """Return up to five column positions of round steps, and their labels, such as ``200k``."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    ticks = np.asarray(MaxNLocator(4, integer=True).tick_values(steps[0], steps[-1]))
    ticks = ticks[(ticks >= steps[0]) & (ticks <= steps[-1])]
    if steps[0] == steps[-1]:
        ticks = np.array(steps[:1])
    label = EngFormatter(sep="")
    return np.interp(ticks, steps, np.arange(len(steps))), [label(tick) for tick in ticks]
