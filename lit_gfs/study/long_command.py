"""What the subcommands that run cells for hours have in common: `study` and `search`."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lit_gfs.configuration.config_files import find_config
from lit_gfs.configuration.config_trust import take_trust, trust_options, trusting
from lit_gfs.errors import StorageFault, UserError
from lit_gfs.runs.layout import require_directory
from lit_gfs.runs.storage_errors import describe_storage_error, is_storage_error
from lit_gfs.study.planning.plan import Study
from lit_gfs.study.stopping import StopRequest

CONTINUES = "; what ended is kept, and the same command continues"


def add_study_options(parser: ArgumentParser) -> None:
    """Add the options that say which study it is, and where its directory is."""
    parser.add_argument("--config", type=str | None, help="The study: a YAML file, or a shipped name.")
    parser.add_argument("--root", type=str, default="runs", help="Directory of all runs.")


def load_study(options: Namespace, example: str) -> Study:
    """Read the study that a command line names.

    Args:
        options: The parsed command line.
        example: The command with a study, for a command line without one.

    Raises:
        UserError: If none is named, it has a mistake, or ``--root`` is no directory.
    """
    if options.config is None:
        raise UserError(f"--config is missing; name a study, as in: {example}")
    require_directory("--root", options.root)
    return Study.load(find_config(options.config))


def run_trusting(
    parser: ArgumentParser, arguments: Sequence[str], command: Callable[[Namespace], int]
) -> int:
    """Run a command with the packages that its command line trusts, and return the exit status.

    Args:
        parser: Its parser.
        arguments: Its options.
        command: Takes the parsed options, with the packages as ``trust``.

    Raises:
        UserError: With one line about what is wrong.
    """
    others, packages = take_trust(arguments)
    options = parser.parse_args(others)
    options.trust = packages
    try:
        with trusting(packages):
            return command(options)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 128 + signal.SIGINT


def stopped_status(stop: StopRequest, left: str) -> int:
    """Say on stderr how far a stopped command came, and return its exit status.

    Args:
        stop: The signal that stopped it.
        left: What is left, for people.
    """
    print(f"stopped, {left}; the same command continues", file=sys.stderr)
    return 128 + (stop.signal or signal.SIGINT)


def shown_command(subcommand: str, options: Namespace, *others: str) -> str:
    """Return the command as a report shows it: everything that may change results.

    Args:
        subcommand: Its name.
        options: The parsed command line.
        others: Options of this subcommand alone.
    """
    command = ["python", "-m", "lit_gfs", subcommand, "--config", options.config, "--root", options.root]
    if options.threads != 1:
        command += ["--threads", str(options.threads)]
    return shlex.join([*command, *others, *trust_options(options.trust)])


@contextlib.contextmanager
def storage_faults(directory: Path, advice: str = "") -> Iterator[None]:
    """Turn errors of the storage into a `StorageFault` with one line.

    Args:
        directory: Where the command writes.
        advice: Added to the line.
    """
    try:
        yield
    except StorageFault as fault:
        raise StorageFault(f"{fault}{advice}") from fault
    except OSError as error:
        if not is_storage_error(error, directory):
            raise
        raise StorageFault(f"{describe_storage_error(error, directory)}{advice}") from error
