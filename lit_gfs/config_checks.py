"""Mistakes in a configuration that jsonargparse lets pass: unknown keys without a value, and missing
numbers."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import yaml
from jsonargparse import Namespace

from lit_gfs.errors import UserError, nearest


def check_files(arguments: Sequence[str], options: Collection[str]) -> None:
    """Check the keys at the top of each ``--config`` file, and those below ``gfs``.

    A key whose value is empty, as in ``gfs: {path_init: {}}``, switches something on; misspelt, it would be
    passed over in silence.

    Args:
        arguments: What was typed, with a path after each ``--config``.
        options: The dotted names that the parser knows, such as ``gfs.path_init``.

    Raises:
        UserError: If a key is not known.
    """
    files = [value for option, value in pairwise(arguments) if option == "--config"]
    for file in files:
        with open(file) as stream:
            try:
                content = yaml.safe_load(stream)
            except yaml.YAMLError:
                continue  # the parser has a word on it
        if not isinstance(content, dict):
            continue
        _check_keys(content, {option.partition(".")[0] for option in options}, "")
        interventions = {option.split(".")[1] for option in options if option.startswith("gfs.")}
        chosen = content.get("gfs") or {}
        if not isinstance(chosen, dict):
            raise UserError(f"gfs is {chosen!r}; expected keys such as {', '.join(sorted(interventions))}")
        _check_keys(chosen, interventions, "gfs.")


def check_numbers(config: Namespace) -> None:
    """Refuse ``null`` for a number, a string or a switch that has to have a value.

    Raises:
        UserError: If there is one.
    """
    for path, arguments, hints in _classes(config.as_dict(), ""):
        for name, value in arguments.items():
            if value is None and hints.get(name) in (int, float, bool, str):
                raise UserError(f"{path}{name} is null; expected {hints[name].__name__}")


def _check_keys(content: Mapping[Any, Any], known: Collection[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise UserError(f"{where}{key} is no known key{nearest(str(key), known)}")


def _classes(content: Mapping[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield every class that a configuration names: its place, its arguments, and their types."""
    if isinstance(content.get("class_path"), str) and isinstance(content.get("init_args"), dict):
        try:
            module, _, name = content["class_path"].rpartition(".")
            hints = typing.get_type_hints(getattr(importlib.import_module(module), name).__init__)
        except (NameError, TypeError, AttributeError):
            hints = {}  # a class that does not say its types
        yield path, content["init_args"], hints
        content = content["init_args"]
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _classes(value, f"{path}{key}.")
