"""Figures of what the metrics measure, drawn without any global state of the plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

ZERO_COLOUR = "#c4c4c4"
NOT_FINITE_COLOUR = "#e8112d"
_MOST_LABELS = 20


def gradient_heat_map(
    layers: Sequence[str],
    steps: Sequence[int],
    raw: Tensor,
    applied: Tensor,
    x_label: str = "environment steps",
) -> Figure:
    """Draw layer gradient norms over a run: raw beside applied, on one logarithmic colour scale.

    All columns are equally wide and the ticks say at which step they stand, because several measurements may
    share one environment step. The colours end at the 1st and 99th percentile of all cells, so that a few
    extreme norms do not flatten the rest.

    Args:
        layers: The names of the L layers, drawn from the top down.
        steps: The step at which each of the C columns begins, never decreasing; C is at least 1.
        raw: log10 of the norms before interventions and clipping, ``(C, L)``; minus infinity stands for
            zero, NaN and plus infinity for not finite.
        applied: log10 of the norms as the optimizer received them, ``(C, L)``.
        x_label: What ``steps`` count.

    Returns:
        The figure, on an Agg canvas.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    panels = {"raw": raw.T.double().numpy(), "applied": applied.T.double().numpy()}
    scale = Normalize(*colour_limits(np.stack(list(panels.values()))))
    colours = ScalarMappable(scale, colormaps["viridis"])

    # A layout of fixed margins, in inches: frames keep still while the reader moves through a run, and
    # measuring every text would take longer than drawing.
    width, height = 9.0, 1.7 + 0.24 * min(max(len(layers), 8), _MOST_LABELS)
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
    every = math.ceil(len(layers) / _MOST_LABELS)
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
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("$10^{{{x:.0f}}}$"))
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
        longest: The characters that have room; a longer name loses leading parts, then its beginning.

    Returns:
        The names without the leading parts that all of them share.
    """
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return [_short_name(part[shared:], longest) for part in parts]


def _short_name(parts: Sequence[str], longest: int) -> str:
    for first in range(len(parts)):
        name = ".".join(parts[first:])
        if len(name) <= longest:
            return name
    return "…" + parts[-1][-(longest - 1) :]


def norm_pixels(cells: np.ndarray, colours: ScalarMappable) -> np.ndarray:
    """Colour gradient norms.

    Args:
        cells: log10 of the norms, ``(rows, columns)``; minus infinity stands for zero, NaN and plus infinity
            for not finite.
        colours: The colour scale.

    Returns:
        RGBA pixels ``(rows, columns, 4)``.
    """
    from matplotlib.colors import to_rgba

    pixels = colours.to_rgba(cells)
    pixels[np.isneginf(cells)] = to_rgba(ZERO_COLOUR)
    pixels[np.isnan(cells) | np.isposinf(cells)] = to_rgba(NOT_FINITE_COLOUR)
    return pixels


def colour_limits(cells: np.ndarray) -> tuple[float, float]:
    """Return the ends of a colour scale: the 1st and 99th percentile, at least two decades apart.

    Args:
        cells: log10 of norms, of any shape; those that are not finite are left out.
    """
    finite = cells[np.isfinite(cells)]
    if finite.size == 0:
        return -1.0, 1.0
    low, high = np.percentile(finite, [1, 99])
    margin = max(0.0, 2.0 - (high - low)) / 2
    return float(low - margin), float(high + margin)


def _step_ticks(steps: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    """Return up to five column positions at round steps, and their labels, such as ``200k``."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    ticks = np.asarray(MaxNLocator(4, integer=True).tick_values(steps[0], steps[-1]))
    ticks = ticks[(ticks >= steps[0]) & (ticks <= steps[-1])]
    if steps[0] == steps[-1]:
        ticks = np.array(steps[:1])
    label = EngFormatter(sep="")
    return np.interp(ticks, steps, np.arange(len(steps))), [label(tick) for tick in ticks]
