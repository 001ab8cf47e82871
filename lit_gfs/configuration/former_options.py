"""Options that have another name today: saved configurations and old commands go on under the former one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jsonargparse
import yaml

import lit_gfs.utils.yaml_files  # noqa: F401 - sets the reader that is wrapped below

FORMER_OPTIONS = {"model.evaluation_epsilon": "model.eval_epsilon"}
"""Today's names by former ones; a configuration may write ``init_args`` between the two parts."""


def with_present_options(content: Any) -> Any:
    """Return a configuration with today's names in the place of former ones.

    Arguments of a class that is not of this package stay as they are.

    Args:
        content: What stands in a configuration; only a mapping is changed.
    """
    for former, present in FORMER_OPTIONS.items():
        group, former = former.split(".")
        chosen = content.get(group) if isinstance(content, dict) else None
        if not isinstance(chosen, dict) or not _is_ours(chosen.get("class_path")):
            continue
        nested = chosen.get("init_args")
        for arguments in (chosen, nested if isinstance(nested, dict) else {}):
            if former in arguments:
                arguments.setdefault(present.split(".")[1], arguments.pop(former))
    return content


def with_present_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line with today's options in the place of former ones."""
    return [_present(argument) for argument in arguments]


def _present(argument: str) -> str:
    option, equals, value = argument.partition("=")
    name = option.removeprefix("--").replace(".init_args.", ".")
    if option.startswith("--") and name in FORMER_OPTIONS:
        return f"--{FORMER_OPTIONS[name]}{equals}{value}"
    return argument


def _is_ours(class_path: Any) -> bool:
    """Return whether a class path may be of this package; the parser takes bare names, too, and none."""
    return class_path is None or (
        isinstance(class_path, str) and ("." not in class_path or class_path.startswith("lit_gfs."))
    )


_load_yaml = jsonargparse.get_loader("yaml")


def _load_with_present_options(text: str) -> Any:
    return with_present_options(_load_yaml(text))


# The parser reads configurations by itself.
jsonargparse.set_loader("yaml", _load_with_present_options, exceptions=(yaml.YAMLError, ValueError))
