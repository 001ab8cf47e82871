"""The subcommand ``configs``: the shipped configurations, each with one line, or the text of one."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from jsonargparse import ArgumentParser

from lit_gfs.configuration.config_files import shipped_config, shipped_configs
from lit_gfs.configuration.subcommand import SubcommandParser
from lit_gfs.errors import UserError, nearest

_GROUPS = {
    "": "configurations: python -m lit_gfs fit --config NAME",
    "recipes": "recipes, on top of a configuration: python -m lit_gfs fit --config quickstart --config NAME",
    "studies": "studies: python -m lit_gfs study --config NAME",
}
"""Headings by folder."""
_END_OF_SENTENCE = re.compile(r"(?<=[.?])(?<! al\.)\s")


def configs_parser() -> ArgumentParser:
    """Make the parser of ``configs``."""
    parser = SubcommandParser(
        prog="lit_gfs configs",
        description="Lists the shipped configurations, recipes and studies, or prints one of them.",
    )
    parser.add_argument("name", type=str, nargs="?", help="The one to print, as in: configs recipes/gfs")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Print the list, or a configuration's text, and return the exit status, 0.

    Args:
        arguments: The command line, beginning with ``configs``.

    Raises:
        UserError: If there is no such configuration.
    """
    name = configs_parser().parse_args(arguments[1:]).name
    if name is None:
        print(listing(shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
        return 0
    path = shipped_config(name)
    if path is None:
        raise UserError(
            f"{name!r} is no shipped configuration; `configs` lists them{nearest(name, shipped_configs())}"
        )
    print(path.read_text(encoding="utf-8"), end="")
    return 0


def listing(width: int | None = None) -> str:
    """Return the list of all shipped configurations, grouped.

    Args:
        width: Columns of the terminal; ``None`` gives each configuration exactly one line.
    """
    shipped = shipped_configs()
    column = max(map(len, shipped)) + 4
    lines: list[str] = []
    for folder, heading in _GROUPS.items():
        lines += ["", heading] if lines else [heading]
        for name, path in shipped.items():
            if name.rpartition("/")[0] == folder:
                line = f"{f'  {name}':<{column}}{description(path)}"
                lines += textwrap.wrap(line, width, subsequent_indent=" " * column) if width else [line]
    return "\n".join(lines)


def description(path: Path) -> str:
    """Return the first sentence of the comment that a configuration begins with."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return _END_OF_SENTENCE.split(" ".join(line.removeprefix("#").strip() for line in lines))[0]
