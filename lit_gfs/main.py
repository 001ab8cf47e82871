"""The program: it picks a subcommand, runs it, and reports a user's mistake in one line.

PyTorch and Lightning take seconds to import. So each subcommand is imported only when it runs, and mistakes
that need neither of them, such as a misspelt configuration, are told before.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple, NoReturn

from lit_gfs.configuration.config_files import complete_arguments
from lit_gfs.configuration.suggestions import check_typed, nearest_command
from lit_gfs.errors import (
    EnvironmentFault,
    OtherProcessFailed,
    RunFault,
    RunStopped,
    StorageFault,
    UserError,
    nearest,
)
from lit_gfs.runs.storage_errors import describe_storage_error, is_storage_error
from lit_gfs.utils.lasting_output import outlasting_readers
from lit_gfs.utils.library_noise import silence_library_noise
from lit_gfs.utils.plain_warnings import plain_warnings
from lit_gfs.utils.ranks import is_first_process
from lit_gfs.utils.working_directory import keeping_working_directory, working_directory


class Subcommand(NamedTuple):
    """A subcommand: its line in the help, and the module whose ``run`` takes the command line."""

    line: str
    module: str


LIGHTNING = "lit_gfs.cli"
SUBCOMMANDS = {
    "fit": Subcommand("Train an agent, or resume a run.", LIGHTNING),
    "validate": Subcommand("Evaluate a checkpoint.", LIGHTNING),
    "test": Subcommand("Evaluate a checkpoint, and film an episode with --data.video true.", LIGHTNING),
    "configs": Subcommand("List the shipped configurations, or print one.", "lit_gfs.configuration.listing"),
    "study": Subcommand("Run a grid of fits, and report on it.", "lit_gfs.study.command"),
    "search": Subcommand("Search the options of a study's recipes.", "lit_gfs.study.search.command"),
    "report": Subcommand("Make a study's report again.", "lit_gfs.study.command"),
    "diagnose": Subcommand("Say what went wrong in existing runs.", "lit_gfs.study.diagnose"),
    "compare": Subcommand("Show how existing runs differ.", "lit_gfs.study.compare"),
}

_VERSIONS_OF = ("lit_gfs", "torch", "lightning", "torchrl")
_HELP = """\
usage: lit_gfs SUBCOMMAND [OPTION ...]

Deep-RL networks that stay trainable as they grow.

subcommands:
{lines}

options:
  -h, --help  Show this help; after a subcommand, show its options.
  --version   Show the versions of lit_gfs, torch, lightning and torchrl.

examples:
  python -m lit_gfs configs
  python -m lit_gfs fit --config quickstart
  python -m lit_gfs fit --config quickstart --help"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments after the program's name; ``None`` takes the process's own.

    Raises:
        SystemExit: With status 2 after a user's mistake, which stderr gets in one line; with another status
            after a fault or a signal ended a run, and after a study was stopped or one of its runs failed.
    """
    silence_library_noise()
    with outlasting_readers(), keeping_working_directory(), plain_warnings():
        _main(sys.argv[1:] if args is None else args)


def _main(arguments: Sequence[str]) -> None:
    try:
        if status := _run(arguments):
            raise SystemExit(status)
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error), 2)
    except RunFault as fault:
        if isinstance(fault, EnvironmentFault) and not fault.advice:
            from lit_gfs.runs.exit_status import keep_traceback

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


def _run(arguments: Sequence[str]) -> int:
    """Run the subcommand that a command line begins with, and return the exit status."""
    if not arguments:
        raise UserError("no subcommand; expected fit, validate or test, as in: fit --config quickstart")
    name = arguments[0]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print("\n".join(f"{each} {version(each)}" for each in _VERSIONS_OF))
        return 0
    if name.startswith("-"):
        # It would belong to another parser, whose configurations are not checked.
        option = name.partition("=")[0]
        raise UserError(
            f"{option} stands before the subcommand; expected it after, as in: fit --config quickstart"
            f"{nearest(option, ('--help', '--version'))}"
        )
    if name not in SUBCOMMANDS:
        close = nearest_command(name, SUBCOMMANDS)
        raise UserError(f"{name!r} is no subcommand; expected {', '.join(SUBCOMMANDS)}{close}")
    module = SUBCOMMANDS[name].module
    if module == LIGHTNING or name in ("study", "search"):
        check_typed(arguments)
    if module == LIGHTNING:
        arguments = complete_arguments(arguments)
    status: int = import_module(module).run(arguments)
    return status


def _help() -> str:
    lines = (f"  {name:<10}{subcommand.line}" for name, subcommand in SUBCOMMANDS.items())
    return _HELP.format(lines="\n".join(lines))


def _fail(message: str, status: int) -> NoReturn:
    print("lit_gfs: error:", _printable(" ".join(message.split())), file=sys.stderr)
    raise SystemExit(status)


def _printable(text: str) -> str:
    """Escape control characters, because messages show keys and values as the user wrote them."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )
