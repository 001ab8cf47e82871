"""The text about a run: its command, what the user changed, and the versions of the packages."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lit_gfs.configuration.changes import Given

PACKAGES = ("lit-gfs", "torch", "lightning", "torchrl", "tensordict", "gymnasium", "numpy")
"""Packages that decide on the results of a run."""


def run_text(given: Given, config: Mapping[str, Any]) -> str:
    """Return the text in Markdown.

    Args:
        given: What the command line gives.
        config: The resolved configuration.
    """
    command = shlex.join(["python", "-m", "lit_gfs", *given.arguments])
    base = " and ".join(f"`{name}`" for name in given.bases) or "the defaults"
    changes = [
        [f"`{change.option}`", _shown(change.before), _shown(change.after)]
        for change in given.changes(config)
    ]
    return "\n\n".join(
        [
            "### Command",
            f"    {command}",
            f"### Options that differ from {base}",
            _table(["option", "before", "in this run"], changes) if changes else "None.",
            "### Versions",
            _table(["package", "version"], [list(each) for each in versions().items()]),
        ]
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide on results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
