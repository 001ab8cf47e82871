"""The configuration of a run that a program has built: what ``config.yaml`` says of its objects."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

from lightning.pytorch import Callback

from lit_gfs.callbacks.named import INTERVENTIONS, key_of
from lit_gfs.envs import EnvSpec
from lit_gfs.utils.signatures import accepted_parameters

_OWN_PACKAGE = "lit_gfs."


class IndescribableError(Exception):
    """An object that a configuration cannot name; the message says which."""


def describe_object(built: Any) -> dict[str, Any]:
    """Describe an agent or a datamodule by its class and the arguments that it was made of.

    For a class of this package all arguments are named, because defaults may change in a later version. A
    class of the user may choose other defaults for its base, so only what it was given is named.

    Raises:
        IndescribableError: If an argument cannot be named, or the object does not remember its arguments.
    """
    cls = type(built)
    given = getattr(built, "given_arguments", None)
    if given is None:
        raise IndescribableError(f"{cls.__name__} does not remember its arguments")
    is_ours = cls.__module__.startswith(_OWN_PACKAGE)
    known = accepted_parameters(cls) if is_ours else {}
    defaults = {name: each.default for name, each in known.items() if each.default is not each.empty}
    arguments = {
        # The environment's spaces come from the datamodule.
        name: _described(f"{cls.__name__}'s {name}", value)
        for name, value in {**defaults, **given}.items()
        if not isinstance(value, EnvSpec)
    }
    return {"class_path": _import_path(cls.__name__, cls), "init_args": arguments}


def describe_interventions(callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Describe the callbacks with a key, as under ``gfs``; a key without a callback is ``None``.

    Each of them keeps its arguments in attributes of the same names.
    """
    described: dict[str, Any] = dict.fromkeys(INTERVENTIONS)
    for callback in callbacks:
        key = key_of(callback)
        if key is not None and described[key] is None:
            cls = type(callback)
            arguments = {name: getattr(callback, name) for name in accepted_parameters(cls)}
            described[key] = {
                "class_path": _import_path(cls.__name__, cls),
                "init_args": {name: _described(name, value) for name, value in arguments.items()},
            }
    return described


def describe_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are plain values; callbacks, loggers and other objects are left out."""
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or isinstance(value, bool | int | float | str):
            plain[name] = value
    return plain


def _described(place: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return (value.value if isinstance(value, str) else value.name) if isinstance(value, Enum) else value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _described(f"{place}[{key!r}]", entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_described(place, entry) for entry in value]
    if inspect.isclass(value):
        return {"class_path": _import_path(place, value)}
    if isinstance(value, functools.partial) and inspect.isclass(value.func) and not value.args:
        arguments = {name: _described(f"{place}.{name}", each) for name, each in value.keywords.items()}
        return {"class_path": _import_path(place, value.func), "init_args": arguments}
    raise IndescribableError(
        f"{place} is {value!r}; expected a class, or functools.partial of a class with keywords"
    )


def _import_path(place: str, cls: type) -> str:
    if "<locals>" in cls.__qualname__:
        raise IndescribableError(
            f"{place} is {cls.__qualname__}; a configuration can name classes of modules"
        )
    return f"{cls.__module__}.{cls.__qualname__}"
