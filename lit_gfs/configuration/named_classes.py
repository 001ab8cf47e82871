"""The classes that a parsed configuration names, with what they are given."""

from __future__ import annotations

import importlib
import inspect
import operator
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jsonargparse import Namespace

from lit_gfs.utils.signatures import accepted_parameters, parameter_hints


class NamedClass(NamedTuple):
    """A class that a configuration names."""

    place: str
    """Where it stands, as in ``model.trunk.``."""
    cls: Any
    arguments: dict[str, Any]
    unlisted: dict[str, Any]
    """Those of its arguments that it accepts and does not list."""

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The arguments that it accepts, by name."""
        return accepted_parameters(self.cls)

    @property
    def hints(self) -> dict[str, Any]:
        """Types of its arguments, as far as it states them."""
        return parameter_hints(self.cls)


def named_classes(config: Any, place: str = "") -> Iterator[NamedClass]:
    """Find every class that a configuration names, the outer ones first.

    Args:
        config: What the parser made of it, or a part of that.
        place: Where the part stands, as in ``model.``.
    """
    # Only what the parser has looked at: what looks like a class within plain data stays data.
    if isinstance(config, list | tuple | dict):
        items = config.items() if isinstance(config, dict) else enumerate(config)
        for key, item in items:
            yield from named_classes(item, f"{place}{key}.")
    if not isinstance(config, Namespace):
        return
    values = vars(config)
    if isinstance(values.get("class_path"), str):
        cls = _find(values["class_path"])
        unlisted = dict(values.get("dict_kwargs") or {})
        values = vars(values.get("init_args") or Namespace())
        yield NamedClass(place, cls, values, unlisted)
    for key, value in values.items():
        yield from named_classes(value, f"{place}{key}.")


def _find(path: str) -> Any:
    """Return what an import path names, such as a class, or a method of one."""
    module, _, name = path.rpartition(".")
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except ModuleNotFoundError:  # not a module, but a class in one
        return getattr(_find(module), name)
