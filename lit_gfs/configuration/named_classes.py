"""Classes in a parsed configuration, with their arguments."""

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
    """Position in the configuration, such as ``model.trunk.``."""
    cls: Any
    arguments: dict[str, Any]
    unlisted: dict[str, Any]
    """Additional arguments that are not in the class's signature."""

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The arguments that it accepts, by name."""
        return accepted_parameters(self.cls)

    @property
    def hints(self) -> dict[str, Any]:
        """Types of its arguments, as far as it states them."""
        return parameter_hints(self.cls)


def named_classes(config: Any, place: str = "") -> Iterator[NamedClass]:
    """Yield all classes that a configuration names, outer classes first.

    Args:
        config: The parsed configuration, or a part of it.
        place: Position of the part, such as ``model.``.
    """
    # Only a Namespace can be a class: the parser leaves plain data as lists, tuples and dictionaries.
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


def option_names(config: Namespace, parts: Mapping[str, type]) -> set[str]:
    """Return the full names of all options, as in ``model.trunk.depth``.

    Args:
        config: The parsed configuration.
        parts: Classes by the option that takes them; their arguments count even where none is chosen.
    """
    chosen = {key.replace(".init_args", "").removesuffix(".class_path") for key, _ in config.items()}
    return chosen | {f"{place}.{name}" for place, cls in parts.items() for name in accepted_parameters(cls)}


def _find(path: str) -> Any:
    """Import the object at an import path, such as a class or a method of a class."""
    module, _, name = path.rpartition(".")
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except ModuleNotFoundError:  # the path before the last dot is a class, not a module
        return getattr(_find(module), name)
