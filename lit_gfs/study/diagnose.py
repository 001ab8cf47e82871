"""The subcommand ``diagnose``: what went wrong in existing runs."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from lit_gfs.configuration.subcommand import SubcommandParser
from lit_gfs.metrics.diagnosis import diagnose, summary_line
from lit_gfs.study.logged_runs import find_runs, read_run
from lit_gfs.utils.formats import relative_path


def diagnose_parser() -> ArgumentParser:
    """Make the parser of ``diagnose``."""
    parser = SubcommandParser(
        prog="lit_gfs diagnose", description="Says what went wrong in runs, from what they logged."
    )
    parser.add_argument(
        "runs", type=str, nargs="+", help="Directories of runs, or directories with runs inside."
    )
    parser.add_argument(
        "--strict",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="Exit with status 1 if a rule fires and lasts until the end of a run.",
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Print the findings of each run.

    Args:
        arguments: The command line, beginning with ``diagnose``.

    Returns:
        The exit status: 0, or with ``--strict true`` 1 if there is a finding that lasts.

    Raises:
        UserError: If there is no such run.
    """
    options = diagnose_parser().parse_args(arguments[1:])
    wrong = False
    for directory in find_runs(options.runs):
        scalars = read_run(directory).scalars
        findings = diagnose(scalars)
        wrong |= any(finding.lasts for finding in findings)
        lines = [finding.line for finding in findings] + [summary_line(scalars)]
        print(relative_path(directory), *(f"  {line}" for line in lines), sep="\n", flush=True)
    return int(wrong and options.strict)
