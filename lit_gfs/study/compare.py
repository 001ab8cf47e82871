"""The subcommand ``compare``: runs side by side, in the terminal and on a page of curves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_gfs.configuration.subcommand import SubcommandParser
from lit_gfs.errors import StorageFault, UserError
from lit_gfs.metrics.diagnosis import diagnose
from lit_gfs.runs.event_files import event_directory
from lit_gfs.runs.storage_errors import describe_storage_error, is_storage_error
from lit_gfs.study.logged_runs import (
    LoggedRun,
    differing_options,
    find_runs,
    read_run,
    short_run_names,
)
from lit_gfs.utils.atomic_files import replacing_text
from lit_gfs.utils.formats import format_return, relative_path

WIDTH_OF_A_RUN = 36
"""Columns for a run where stdout is no terminal."""
MOST_CHARACTERS = 80
"""Longest value of an option that is shown."""

Row = tuple[str, list[str]]


def compare_parser() -> ArgumentParser:
    """Make the parser of ``compare``."""
    parser = SubcommandParser(
        prog="lit_gfs compare",
        description="Shows how runs differ: options, returns, diagnosis, and a page of curves.",
    )
    parser.add_argument(
        "runs", type=str, nargs="+", help="Directories of at least two runs, or directories with runs inside."
    )
    parser.add_argument("--output", type=str, default="compare.html", help="The page of curves to write.")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Print a table of runs, and write the page.

    Args:
        arguments: The command line, beginning with ``compare``.

    Returns:
        The exit status, 0.

    Raises:
        UserError: If there are less than two runs, or the page's directory does not exist.
        StorageFault: If the page cannot be written.
    """
    options = compare_parser().parse_args(arguments[1:])
    directories = find_runs(options.runs)
    if len(directories) < 2:
        raise UserError(f"compare got one run, {relative_path(directories[0])!r}; expected at least two")
    output = Path(options.output)
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output is {options.output!r}; expected a file in a directory that exists")
    runs = [read_run(directory) for directory in directories]
    names = short_run_names([event_directory(directory) for directory in directories])
    rows = comparison(runs)
    print_comparison(names, rows)
    try:
        with replacing_text(output) as file:
            file.write(comparison_page(names, runs, rows))
    except OSError as error:
        if not is_storage_error(error, output.parent):
            raise
        raise StorageFault(describe_storage_error(error, output.parent)) from error
    print(f"curves: {relative_path(output)}", flush=True)
    return 0


def comparison(runs: Sequence[LoggedRun]) -> list[Row]:
    """Return the rows of the table: a title, and a value for each run."""
    rows: list[Row] = [
        (option, [_shown(value) for value in values]) for option, values in differing_options(runs).items()
    ]
    rows.append(("steps", [f"{run.steps:,}" for run in runs]))
    rows.append(("final score", [format_return(run.final) for run in runs]))
    rows.append(("best score", [format_return(run.best) for run in runs]))
    diagnoses = [[str(finding) for finding in diagnose(run.scalars)] for run in runs]
    rows.append(("diagnosis", ["\n".join(findings) or "nothing found" for findings in diagnoses]))
    return rows


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def print_comparison(names: Sequence[str], rows: Sequence[Row], console: Console | None = None) -> None:
    """Print a column for each run.

    Args:
        names: Names of the runs.
        rows: As from `comparison`.
        console: Terminal for the table, in place of stdout.
    """
    if console is None:
        wide = None if sys.stdout.isatty() else WIDTH_OF_A_RUN * (len(names) + 1)
        console = Console(width=wide)
    table = Table(box=box.ROUNDED)
    table.add_column(style="dim", overflow="fold")
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for title, values in rows:
        style = "yellow" if title == "diagnosis" else ""
        table.add_row(Text(title), *(Text(value, style) for value in values))
    console.print(table)


def comparison_page(names: Sequence[str], runs: Sequence[LoggedRun], rows: Sequence[Row]) -> str:
    """Make a page without external files: the table, and curves of all runs.

    Args:
        names: Names of the runs.
        runs: The runs.
        rows: As from `comparison`.
    """
    # Imported late: it needs matplotlib.
    from lit_gfs.study.report.page import page, picture, section, table
    from lit_gfs.study.report.panels import data_uri
    from lit_gfs.study.report.run_figures import curves_figure

    cells = [
        [escape(title), *(escape(value).replace("\n", "<br>") for value in values)] for title, values in rows
    ]
    directories = "".join(
        f"<li><b>{escape(name)}</b>: {escape(relative_path(run.directory))}</li>"
        for name, run in zip(names, runs, strict=True)
    )
    sections = [
        f"<h1>{len(runs)} runs side by side</h1>",
        section(
            "differences",
            "Differences",
            "Options in which the runs differ, and how they ended. The final score is the mean of the "
            "evaluations in the last tenth of a run.",
            table(["", *map(escape, names)], cells),
            f"<ul>{directories}</ul>",
        ),
    ]
    if (figure := curves_figure(names, [run.curves for run in runs])) is not None:
        shown = picture(data_uri(figure), "Curves of all runs", "Means over neighbouring points.")
        sections.append(section("curves", "Curves", "Each panel shows one logged quantity.", shown))
    return page("Runs side by side", sections)
