"""Common parts of the benchmarks' command lines: options passed on to `fit`, and JSON as output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_gfs.errors import UserError


def settings(options: Sequence[str]) -> dict[str, str]:
    """Read options of the form ``key=value``; the last one of a name counts.

    Raises:
        UserError: If an option has no ``=``.
    """
    read = {}
    for option in options:
        name, equals, read[name] = option.partition("=")
        if not equals:
            raise UserError(f"option {option!r}; expected key=value, as in model.trunk.depth=8")
    return read


def typed(options: Mapping[str, Any]) -> list[str]:
    """Return options in the form of the command line: ``--name=value``."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in options.items()
    ]


def rounded(value: Any) -> Any:
    """Round every float of a nested value to six significant digits."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def answer(
    parser: argparse.ArgumentParser,
    args: Sequence[str] | None,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
) -> None:
    """Run the measurement of the arguments and print it as JSON, into the file of ``--json`` too.

    Raises:
        SystemExit: With status 2 and one line after a user's mistake.
    """
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args(args)
    try:
        result = measure(arguments)
    except (UserError, MisconfigurationException) as error:
        parser.error(" ".join(str(error).split()))
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
