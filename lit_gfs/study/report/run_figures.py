"""Curves of single runs, drawn without matplotlib's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from lit_gfs.metrics.series import Series
from lit_gfs.study.report.panels import line_style, panel_axes, recipe_styles

MOST_POINTS = 200
"""Points of a curve; more neighbouring ones are averaged."""

PANELS = (
    ("eval/episode_return", "evaluation return"),
    ("eval/phase_accuracy", "accuracy at the end of a phase"),
    ("eval/accuracy", "evaluation accuracy"),
    ("train/episode_return", "training return"),
    ("representation/effective_rank", "effective rank"),
    ("representation/dormant_share", "share of dormant units"),
    ("policy/churn", "policy churn"),
    ("gradient_flow/max_min_ratio", "largest to smallest gradient"),
    ("gradient_flow/global_norm", "global gradient norm"),
    ("loss/td_error", "TD error"),
    ("schedule/learning_rate", "learning rate"),
)
"""Tags and titles of the panels; one that no run has is left out."""
LOGARITHMIC = ("gradient_flow/max_min_ratio", "gradient_flow/global_norm")
COLUMNS = 3


def curves_figure(names: Sequence[str], runs: Sequence[Mapping[str, Series]]) -> Figure | None:
    """Draw a panel for each quantity and a line for each run.

    Args:
        names: Names of the runs.
        runs: Series by tag of each run.

    Returns:
        The figure, or ``None`` if there is nothing to draw.
    """
    panels = [(tag, title) for tag, title in PANELS if any(tag in run for run in runs)]
    if not panels:
        return None
    styles = recipe_styles(names, names[0])
    figure, axes = panel_axes(len(panels), min(COLUMNS, len(panels)), 2.5, styles)
    for axis, (tag, title) in zip(axes, panels, strict=True):
        for name, run in zip(names, runs, strict=True):
            if tag in run:
                axis.plot(*averaged(run[tag]), lw=1.3, **line_style(styles[name]))
        if tag in LOGARITHMIC:
            axis.set_yscale("log")
        axis.set_title(title, fontsize=8.5)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set_xlabel("steps", fontsize=8)
    return figure


def averaged(series: Series, most: int = MOST_POINTS) -> Series:
    """Average neighbouring points of a long series.

    Args:
        series: The series.
        most: Largest number of points to return.
    """
    size = -(-len(series.steps) // most)
    stretches = range(0, len(series.steps), max(1, size))
    means = [values for start in stretches if (values := series.values[start : start + size])]
    return Series(
        [series.steps[start] for start in stretches], [sum(values) / len(values) for values in means]
    )
