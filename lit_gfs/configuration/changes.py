"""What a user changed on a shipped configuration, and how a run is called for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_gfs.configuration.config_checks import read_configs
from lit_gfs.configuration.config_files import shipped_configs
from lit_gfs.configuration.flat_options import flat_options
from lit_gfs.configuration.method_names import METHOD_NAMES, method_name
from lit_gfs.configuration.switches import options_of
from lit_gfs.runs.layout import CONFIG_NAME, find_run

DEFAULT = "default"
"""Stands for the value of an option that the shipped configurations do not set."""
_RECIPES = "recipes/"
_METHOD_OPTIONS = [["gfs", key] for key in METHOD_NAMES]


class Change(NamedTuple):
    """An option with another value than in the shipped configurations."""

    option: str
    before: Any
    after: Any


class Given(NamedTuple):
    """What a command line gives to ``fit``.

    Attributes:
        arguments: The arguments, with shipped configurations by their names.
        bases: Names of the shipped configurations, and files of runs that are resumed.
        before: Values of their options by dotted name.
        own: Values of the user's options: those of other files, and of the command line.
    """

    arguments: list[str]
    bases: list[str]
    before: dict[str, Any]
    own: dict[str, Any]

    def changes(self, config: Mapping[str, Any]) -> list[Change]:
        """Return the options that the user changed, given the resolved configuration."""
        resolved = flat_options(config)
        values = {option: resolved.get(option, value) for option, value in self.own.items()}
        return [
            Change(option, self.before.get(option, DEFAULT), value)
            for option, value in values.items()
            if option not in self.before or self.before[option] != value
        ]

    def method(self, interventions: Sequence[str]) -> str:
        """Name the interventions of a run: by a recipe that the user left as it is, else one by one.

        Args:
            interventions: Keys of the interventions that are on, such as ``path_init``.
        """
        changed = any(option == "gfs" or option.split(".")[:2] in _METHOD_OPTIONS for option in self.own)
        recipes = [name.removeprefix(_RECIPES) for name in self.bases if name.startswith(_RECIPES)]
        return recipes[-1] if recipes and not changed else method_name(interventions)


def read_given(arguments: Sequence[str]) -> Given:
    """Sort a command line into shipped configurations and what the user gives himself.

    Args:
        arguments: Arguments of ``fit``, with a path after each ``--config``.
    """
    names = {str(path): name for name, path in shipped_configs().items()}
    shown = [names.get(argument, argument) for argument in arguments]
    files = [value for option, value in pairwise(arguments) if option == "--config"]
    bases: list[str] = []
    before: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for file, content in zip(files, read_configs(arguments), strict=True):
        if file in names or _is_of_a_run(Path(file)):
            bases.append(names.get(file, file))
            before |= flat_options(content)
        else:
            own |= flat_options(content)
    for option, text in _options(arguments[1:]):
        own |= flat_options(_nested(option, yaml.safe_load(text) if text.startswith("{") else text))
    return Given(shown, bases, before, own)


def _is_of_a_run(file: Path) -> bool:
    return file.name == CONFIG_NAME and find_run(file.parent) == file.parent.absolute()


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for option, value, _ in options_of(arguments):
        if option.startswith("--") and option not in ("--config", "--trust"):
            yield option.removeprefix("--"), value or ""


def _nested(option: str, value: Any) -> dict[str, Any]:
    """Return a mapping that gives one option a value, without the arguments' own level of names."""
    parts = [part for part in option.split(".") if part not in ("init_args", "class_path")]
    for part in reversed(parts):
        value = {part: value}
    return value
