"""The arguments of a class, those that it forwards to its base classes included."""

from __future__ import annotations

import inspect
import typing
from typing import Any


def accepted_parameters(cls: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class or a function by name.

    Where a class takes ``**options``, those of the next base class with a constructor of its own come after
    its own ones, and so on. It is meant for classes that forward their options to `super`.
    """
    parameters: dict[str, inspect.Parameter] = dict(inspect.signature(cls).parameters)
    if inspect.isclass(cls):
        for constructor in _forwarding_constructors(cls)[1:]:
            _, *own = inspect.signature(constructor).parameters.values()
            parameters |= {each.name: each for each in own if each.name not in parameters}
    return parameters


def parameter_hints(cls: Any) -> dict[str, Any]:
    """Return the types of a class's parameters by name, as far as it states them."""
    hints: dict[str, Any] = {}
    for constructor in reversed(_forwarding_constructors(cls)):
        try:
            hints |= typing.get_type_hints(constructor)
        except (NameError, TypeError, AttributeError):
            continue
    return hints


def _forwarding_constructors(cls: Any) -> list[Any]:
    """List the constructors that get the options of a class, up to the first without ``**options``."""
    if not inspect.isclass(cls):
        return [cls.__init__]
    constructors = []
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            constructors.append(vars(base)["__init__"])
            kinds = {each.kind for each in inspect.signature(constructors[-1]).parameters.values()}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return constructors
