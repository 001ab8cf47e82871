"""The subcommands ``study`` and ``report``."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lit_gfs.configuration.config_trust import add_trust_option
from lit_gfs.configuration.subcommand import SubcommandParser
from lit_gfs.errors import UserError
from lit_gfs.study.cell.planned import choose_cells, fit_command, read_results
from lit_gfs.study.driver import run_cells
from lit_gfs.study.environment import environment
from lit_gfs.study.finished import Elsewhere, needed, read_elsewhere, require_tables, take_over
from lit_gfs.study.launchers.local import LocalLauncher
from lit_gfs.study.launchers.options import Choice, add_launcher_options, choose_launcher
from lit_gfs.study.lock import locked
from lit_gfs.study.long_command import (
    CONTINUES,
    add_study_options,
    load_study,
    run_trusting,
    shown_command,
    stopped_status,
    storage_faults,
)
from lit_gfs.study.origin import (
    ORIGIN_NAME,
    Part,
    attributed,
    continued,
    limited,
    read_origin,
    with_cell,
    write_origin,
)
from lit_gfs.study.planning.factors import Where, matches, read_where
from lit_gfs.study.planning.options_check import check_configs, check_options
from lit_gfs.study.planning.plan import STUDY_NAME, Cell, Study
from lit_gfs.study.progress import StudyProgress
from lit_gfs.study.results.collect import Result, make_table
from lit_gfs.study.results.summary import summarize, write_summary
from lit_gfs.study.results.table import FAILED, RUNS_FILE, read_table, write_table
from lit_gfs.study.search.choices import (
    keep_choices,
    require_choices,
    search_command,
    with_choices,
    without_choice,
)
from lit_gfs.study.stopping import stopped_by_signals

SECONDS_BETWEEN_TABLES = 60.0


def study_parser() -> ArgumentParser:
    """Make the parser of ``study``."""
    parser = SubcommandParser(prog="lit_gfs study", description="Runs a grid of fits, and reports on it.")
    add_study_options(parser)
    add_launcher_options(parser)
    parser.add_argument(
        "--only", type=dict[str, Any] | None, help="Levels by factor: run these cells, as in --only.seed=0."
    )
    parser.add_argument(
        "--finished",
        type=str,
        action="append",
        help="Directory with the tables of a study, as in docs/results/control: take its cells over, and run "
        "only the others. Give it once for each directory.",
    )
    parser.add_argument(
        "--retry_failed", type=bool, nargs="?", const=True, default=False, help="Run failed cells again."
    )
    parser.add_argument(
        "--dry_run",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="Print the cells, and run nothing. Their options are checked when the study runs.",
    )
    add_trust_option(parser)
    return parser


def report_parser() -> ArgumentParser:
    """Make the parser of ``report``."""
    parser = SubcommandParser(
        prog="lit_gfs report", description="Makes a study's report again, from its tables."
    )
    parser.add_argument("directory", type=str, help="The study's directory, as in runs/smoke.")
    return parser


def run_study(options: Namespace) -> int:
    """Plan, run, collect and report.

    Args:
        options: The parsed command line.

    Returns:
        The exit status: 0, or 1 if a cell failed, or 128 + the signal's number if one stopped the study.

    Raises:
        UserError: If the plan has a mistake, before any cell runs.
        StorageFault: If a file cannot be written or read.
    """
    study = load_study(options, "study --config studies/smoke")
    directory = Path(options.root) / study.name
    study = with_choices(study, directory, options.finished or ())
    only = read_where(options.only, study.factors, "--only") if options.only else None
    elsewhere = [read_elsewhere(study, name, options.threads) for name in options.finished or ()]
    if options.dry_run:
        check_configs(study)
        return _print_plan(study, only, directory, options, elsewhere)
    selected = [cell for cell in study.cells() if matches(cell.levels, only or {})]
    require_choices(study, selected, options.config, options.root)
    choice = choose_launcher(options)
    check_options(study)
    with (
        storage_faults(directory, CONTINUES),
        locked(directory) as is_lost,
    ):
        results = read_results(study, directory, options.threads)
        parts = _take_over(directory, results, elsewhere)
        cells = choose_cells(study, results, only, options.retry_failed)
        if cells or not parts:  # a command that only merges tables is no part
            command = shown_command("study", options)
            parts = continued(parts, command, {**environment(), **choice.described(), **_seeds(study)})
        study.save(directory / STUDY_NAME)
        keep_choices(study, directory)
        write_origin(directory, parts)
        # Ray takes seconds to start.
        launcher = choice.make(directory) if cells else LocalLauncher()
        with (
            stopped_by_signals() as stop,
            _Tables(study, cells, results, choice, directory, parts) as progress,
        ):
            run_cells(
                cells,
                study.score,
                directory,
                launcher,
                choice.handed_over or len(cells),
                progress,
                stop,
                options.threads,
                trusted=options.trust,
                keep_checkpoints=study.keep_checkpoints,
                retries=options.retries,
                is_lost=is_lost,
            )
        progress.write()
        if stop.is_set():
            return stopped_status(stop, f"{progress.left} of {len(cells)} cells left")
        _report(directory)
    return 1 if any(result.status == FAILED for result in results.values()) else 0


def run_report(options: Namespace) -> int:
    """Make summary and report from a study's tables.

    Raises:
        UserError: If a table is missing, or ``study`` did not write it.
        StorageFault: If a file cannot be written or read.
    """
    directory = require_tables(options.directory)
    with storage_faults(directory):
        _report(directory)
    return 0


def run(arguments: Sequence[str]) -> int:
    """Run ``study`` or ``report``, and return the exit status.

    Args:
        arguments: The command line, beginning with the subcommand's name.

    Raises:
        UserError: With one line about what is wrong.
    """
    if arguments[0] == "report":
        return run_report(report_parser().parse_args(arguments[1:]))
    return run_trusting(study_parser(), arguments[1:], run_study)


class _Tables(StudyProgress):
    """Progress that also writes the tables regularly, so that a report can be made at any time."""

    def __init__(
        self,
        study: Study,
        cells: Sequence[Cell],
        results: dict[str, Result],
        choice: Choice,
        directory: Path,
        parts: Sequence[Part],
    ) -> None:
        super().__init__(study, cells, results, choice.jobs, choice.queues)
        self._directory = directory
        self._parts = list(parts)
        self._written_at = time.monotonic()

    def ended(self, cell: Cell, result: Result) -> None:
        super().ended(cell, result)
        self._parts = with_cell(self._parts, cell.name)
        if time.monotonic() - self._written_at > SECONDS_BETWEEN_TABLES:
            self.write()

    def write(self) -> None:
        """Write the tables, and where their cells were run."""
        write_origin(self._directory, self._parts)
        write_table(self._directory, make_table(self.study, self.results))
        self._written_at = time.monotonic()


def _report(directory: Path) -> None:
    # Imported late: it needs matplotlib, which other commands do not.
    from lit_gfs.study.report.report import write_report

    study, table = Study.load(directory / STUDY_NAME), read_table(directory)
    if {tuple(run.levels) for run in table.runs} != {tuple(study.factors)}:
        raise UserError(
            f"'{directory / RUNS_FILE}' is of another study; expected the factors {', '.join(study.factors)}"
        )
    parts = read_origin(directory)
    summary = summarize(study, table)
    write_summary(directory, summary)
    path = write_report(directory, study, table, summary, parts)
    failed = sum(run.status == FAILED for run in table.runs)
    print(
        f"report: {path}" + (f" ({failed} of {len(table.runs)} cells failed)" if failed else ""), flush=True
    )


def _take_over(directory: Path, results: dict[str, Result], found: Sequence[Elsewhere]) -> list[Part]:
    """Add results from elsewhere, and return the parts that ran all results."""
    parts = attributed(read_origin(directory), results) if (directory / ORIGIN_NAME).exists() else []
    for each in needed(results, found):
        take_over(directory, each.results)
        parts = [*limited(parts, results.keys() - each.results.keys()), *each.parts]
        results.update(each.results)
    return parts


def _seeds(study: Study) -> dict[str, str]:
    """Say which seeds tuned the options of recipes, and which confirm them."""
    if study.search is None:
        return {}
    return {
        "seeds that tuned": ", ".join(map(str, study.search.seeds)),
        "seeds that confirm": ", ".join(study.factors["seed"]),
    }


def _print_plan(
    study: Study, only: Where | None, directory: Path, options: Namespace, elsewhere: Sequence[Elsewhere]
) -> int:
    results = {name: result for each in needed({}, elsewhere) for name, result in each.results.items()}
    cells = choose_cells(study, results, only, options.retry_failed)
    if searched := without_choice(study, cells):
        first = search_command(options.config, options.root)
        print(f"# {len(searched)} cells get more options, of a search that has not ended: {first}")
    for cell in cells:
        command = fit_command(cell, directory, options.threads, options.trust)
        print(f"# {cell.name}", f"python -m lit_gfs {shlex.join(command)}", sep="\n")
    return 0
