"""Sections of a YAML file as dataclasses; errors name the place of a mistake in the file."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from lit_gfs.errors import UserError, nearest

_Section = TypeVar("_Section")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)


_EXPECTED: dict[Any, tuple[Callable[[Any], bool], str]] = {
    str: (lambda value: isinstance(value, str), "text"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: type(value) is int, "a whole number"),
    float: (_is_number, "a number"),
    float | None: (lambda value: value is None or _is_number(value), "a number or null"),
    list[str]: (
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        "a list of names",
    ),
    list[int]: (_are_whole, "a list of whole numbers"),
    dict[str, Any]: (lambda value: isinstance(value, dict), "keys with a value each"),
}


def read_section(kind: type[_Section], content: Any, place: str) -> _Section:
    """Make a dataclass from a section of a YAML file.

    Args:
        kind: A dataclass; its fields are the keys, and those without a default are required.
        content: The section; ``None`` for an empty one, which has no keys.
        place: The place in the file, as in ``factors.task.acrobot``.

    Raises:
        UserError: If a key is unknown or missing, or a value has the wrong type.
    """
    content = {} if content is None else content
    keys = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(content, dict):
        raise UserError(f"{place} is {content!r}; expected keys such as {', '.join(keys)}")
    check_known(content, keys, "key", place)
    if missing := [name for name in keys if name not in content and not _has_default(keys[name])]:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{' and '.join(f'{place}.{name}' for name in missing)} {verb} missing")
    hints = typing.get_type_hints(kind)
    for name, value in content.items():
        fits, expected = _EXPECTED[hints[name]]
        if not fits(value):
            raise UserError(f"{place}.{name} is {value!r}; expected {expected}")
    return kind(**content)


def _has_default(key: dataclasses.Field[Any]) -> bool:
    return key.default is not dataclasses.MISSING or key.default_factory is not dataclasses.MISSING


def check_known(names: Collection[Any], known: Collection[str], what: str, place: str) -> None:
    """Refuse unknown names.

    Args:
        names: The names in the file.
        known: Every valid choice.
        what: The kind of name, as in ``level``.
        place: The place in the file.

    Raises:
        UserError: For the first unknown name, with the nearest valid ones.
    """
    for name in names:
        if name not in known:
            expected = nearest(str(name), known) or f"; expected one of {', '.join(known)}"
            raise UserError(f"{place}: {name!r} is no known {what}{expected}")
