"""Switches of interventions: words such as ``on`` and ``off`` under ``gfs``, in files and as options.

The parser has two forms of its own. An empty mapping switches an intervention on, and keeps the arguments
that it has by then; ``null`` switches it off. All other forms become one of these two before the parser sees
them.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jsonargparse
import yaml

import lit_gfs.configuration.former_options  # noqa: F401 - sets the reader that is wrapped below
from lit_gfs.errors import UserError, nearest, shown

GROUP = "gfs"
_ON = ("true", "on", "yes")
_OFF = ("false", "off", "no")


def with_switches(content: Any) -> Any:
    """Return a configuration in which every switch under ``gfs`` has one of the parser's two forms.

    Dotted keys, such as ``gfs.path_init: on``, move below ``gfs``. If ``gfs`` itself is off, it is ``None``.

    Args:
        content: What stands in a configuration; only a mapping changes.

    Raises:
        UserError: If a dotted key says what another key says, too.
    """
    if not isinstance(content, dict):
        return content
    dotted = [key for key in content if isinstance(key, str) and key.startswith(f"{GROUP}.")]
    if GROUP not in content and not dotted:
        return content
    group = copy.deepcopy(content.get(GROUP, {}))
    if isinstance(group, dict):
        group = {name: _in_parsers_form(value) for name, value in group.items()}
    elif _in_parsers_form(group) is None:
        group = None
    for key in sorted(dotted, key=lambda key: key.count(".")):
        is_switch = key.count(".") == 1  # deeper keys are arguments, and true is a value of theirs
        _insert(group, key, _in_parsers_form(content[key]) if is_switch else content[key])
    return {**{key: value for key, value in content.items() if key not in dotted}, GROUP: group}


def with_typed_switches(
    arguments: Sequence[str], contents: Sequence[Mapping[str, Any]], interventions: Mapping[str, type]
) -> list[str]:
    """Return a command line in which every switch has one of the parser's two forms.

    One option for each intervention replaces ``--gfs null``, and follows a configuration with ``gfs: null``.

    Args:
        arguments: The command line, with a path after each ``--config``.
        contents: The contents of these files, from `with_switches`.
        interventions: Classes by name.

    Raises:
        UserError: If a value is neither a switch nor a class.
    """
    remaining = iter(contents)
    switched: list[str] = []
    for option, value, tokens in options_of(arguments):
        name = option.removeprefix(f"--{GROUP}.")
        if option == "--config":
            group = next(remaining, {}).get(GROUP, {})
            for key in group or ():
                _check(key, group[key], interventions)
            switched += tokens if group is not None else [*tokens, *_all_off(interventions)]
        elif option == f"--{GROUP}":
            switched += _one_by_one(value or "", interventions)
        elif name in interventions and value is not None:
            switched.append(_typed(name, value, interventions))
        else:
            switched += tokens
    return switched


def options_of(arguments: Sequence[str]) -> Iterator[tuple[str, str | None, list[str]]]:
    """Yield each option with its value, if it has one, and both as they were typed."""
    is_value = False
    for argument, after in pairwise([*arguments, "--"]):
        if is_value:
            is_value = False
            continue
        option, equals, value = argument.partition("=")
        is_value = argument.startswith("--") and not equals and not after.startswith("--")
        if is_value:
            yield option, after, [argument, after]
        else:
            yield option, value if equals else None, [argument]


def _typed(name: str, value: str, interventions: Mapping[str, type]) -> str:
    state = _in_parsers_form(read_value(value))
    _check(name, state if value else "", interventions)
    return f"--{GROUP}.{name}={json.dumps(state) if state in ({}, None) else value}"


def _all_off(interventions: Iterable[str]) -> list[str]:
    return [f"--{GROUP}.{name}=null" for name in interventions]


def _one_by_one(value: str, interventions: Mapping[str, type]) -> list[str]:
    """Return the options that ``--gfs`` with this value stands for."""
    group = with_switches({GROUP: read_value(value)})[GROUP]
    if group is None and value:
        return _all_off(interventions)
    if not isinstance(group, dict):
        raise UserError(
            f"{GROUP} is {shown(value)}; expected null, or an option below it, as in --{GROUP}.path_init true"
        )
    for name, state in group.items():
        _check(name, state, interventions)
    return [
        f"--{GROUP}.{name}={state if isinstance(state, str) else json.dumps(state)}"
        for name, state in group.items()
    ]


def _in_parsers_form(value: Any) -> Any:
    """Return ``{}`` in the place of a word that means on, and ``None`` in that of one that means off."""
    word = str(value).lower() if isinstance(value, str | bool) else ""
    return {} if word in _ON else None if word in _OFF else value


def _check(name: str, state: Any, interventions: Mapping[str, type]) -> None:
    """Reject what is neither a switch nor a class; the parser judges import paths and mappings."""
    cls = interventions.get(name)
    if cls is None or state is None or isinstance(state, dict):
        return
    names = {each.__name__ for each in _with_subclasses(cls)}
    if isinstance(state, str) and (state in names or "." in state or os.path.isfile(state)):
        return
    advice = nearest(state, {"true", "false", "null", *names}) if isinstance(state, str) else ""
    raise UserError(f"{GROUP}.{name} is {shown(state)}; expected true, false or {cls.__name__}{advice}")


def _with_subclasses(cls: type) -> Iterator[type]:
    yield cls
    subclasses: list[type] = cls.__subclasses__()
    for each in subclasses:
        yield from _with_subclasses(each)


def _insert(group: Any, key: str, value: Any) -> None:
    _, *outer, last = key.split(".")
    for name in outer:
        group = group.setdefault(name, {}) if isinstance(group, dict) else None
    if not isinstance(group, dict) or last in group:
        raise UserError(f"{key} stands beside another key for the same; expected one of the two")
    group[last] = value


def read_value(text: str) -> Any:
    """Read a typed value; a text that is no YAML stays as it is."""
    with contextlib.suppress(yaml.YAMLError, ValueError, UserError):  # the parser reports it
        return _load_yaml(text)
    return text


_load_yaml = jsonargparse.get_loader("yaml")


def _load_with_switches(text: str) -> Any:
    content = with_switches(_load_yaml(text))
    if isinstance(content, dict) and content.get(GROUP, {}) is None:
        # The parser knows no such value; `with_typed_switches` has written one option for each intervention.
        content = {key: value for key, value in content.items() if key != GROUP}
    return content


# The parser reads configurations by itself.
jsonargparse.set_loader("yaml", _load_with_switches, exceptions=(yaml.YAMLError, ValueError))
