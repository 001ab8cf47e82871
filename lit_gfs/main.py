"""The program: it picks a subcommand, runs it, and reports a user's mistake in one line."""

# ruff: noqa: E402 - the libraries below print while they are imported, so they are silenced first.
from __future__ import annotations

from lit_gfs.utils.library_noise import silence_library_noise

silence_library_noise()

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_gfs.cli import GradientFlowCLI
from lit_gfs.configuration.config_files import complete_arguments
from lit_gfs.errors import EnvironmentFault, OtherProcessFailed, RunFault, RunStopped, StorageFault, UserError
from lit_gfs.runs.exit_status import keep_traceback
from lit_gfs.runs.storage_errors import describe_storage_error, is_storage_error
from lit_gfs.study.command import SUBCOMMANDS
from lit_gfs.study.command import run as run_subcommand
from lit_gfs.utils.lasting_output import outlasting_readers
from lit_gfs.utils.plain_warnings import plain_warnings
from lit_gfs.utils.ranks import is_first_process
from lit_gfs.utils.working_directory import keeping_working_directory, working_directory

_BEFORE_SUBCOMMANDS = ("-h", "--help")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments after the program's name; ``None`` takes the process's own.

    Raises:
        SystemExit: With status 2 after a user's mistake, which stderr gets in one line; with another status
            after a fault or a signal ended a run, and after a study was stopped or one of its runs failed.
    """
    with outlasting_readers(), keeping_working_directory(), plain_warnings():
        _main(sys.argv[1:] if args is None else args)


def _main(arguments: Sequence[str]) -> None:
    try:
        _check_order(arguments)
        if arguments and arguments[0] in SUBCOMMANDS:
            if status := run_subcommand(arguments):
                raise SystemExit(status)
        else:
            others = {name: (each.help, each.parser) for name, each in SUBCOMMANDS.items()}
            GradientFlowCLI(complete_arguments(arguments), others)
        sys.stdout.flush()
    except (UserError, MisconfigurationException) as error:
        _fail(str(error), 2)
    except RunFault as fault:
        if isinstance(fault, EnvironmentFault) and not fault.advice:
            keep_traceback(fault, working_directory())  # there was no run yet
        _fail(str(fault), fault.status)
    except OSError as error:
        if not is_storage_error(error):
            raise
        _fail(describe_storage_error(error, "stdout"), StorageFault.status)
    except RunStopped as stopped:
        print("lit_gfs:", stopped, file=sys.stderr)
        raise
    except OtherProcessFailed as failed:
        if failed.message:
            print("lit_gfs:", failed.message, file=sys.stderr)
        raise SystemExit(failed.status) from None
    except KeyboardInterrupt:
        if is_first_process():
            print("lit_gfs: stopped by SIGINT", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def _check_order(arguments: Sequence[str]) -> None:
    # Options before the subcommand belong to another parser, whose configurations are not checked.
    if arguments and arguments[0].startswith("-") and arguments[0] not in _BEFORE_SUBCOMMANDS:
        option = arguments[0].partition("=")[0]
        raise UserError(
            f"{option} stands before the subcommand; expected it after, as in: fit --config quickstart"
        )


def _fail(message: str, status: int) -> NoReturn:
    print("lit_gfs: error:", _printable(" ".join(message.split())), file=sys.stderr)
    raise SystemExit(status)


def _printable(text: str) -> str:
    """Escape control characters, because messages show keys and values as the user wrote them."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )
