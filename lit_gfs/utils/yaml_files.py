"""YAML from users: read within bounds, with errors in one line."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from lit_gfs.errors import UserError

MAX_BYTES = 1_000_000
"""Maximum size of a file: hundreds of times the largest configuration."""

MAX_DEPTH = 50
"""Maximum depth of nesting, because parsers recurse."""

MAX_VALUES = 100_000
"""Maximum number of values; those behind an alias count each time."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_read_value = jsonargparse.get_loader("yaml")


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Returns:
        Plain numbers, strings, lists and dicts; ``None`` for an empty file.

    Raises:
        UserError: If it cannot be read, is not YAML, is too large, or has a key twice.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{name!r} cannot be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{name!r} is larger than {MAX_BYTES:,} bytes; expected a configuration")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name!r} is not text in UTF-8 (byte {error.start}); expected a YAML file") from None
    try:
        check_yaml(text)
        return yaml.load(text, Loader=_LOADER)
    except UserError as error:
        raise UserError(f"{name!r}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name!r} is no YAML: {_describe(error, text)}") from None
    except ValueError as error:  # an impossible date, a number of thousands of digits
        raise UserError(f"{name!r} is no YAML: {error}") from None


def check_yaml(text: str) -> None:
    """Check YAML before loading it, because a few lines with aliases can exceed the memory.

    Raises:
        UserError: If it is nested too deeply, has too many values, or has a key twice.
        YAMLError: If it is not YAML.
    """
    sizes: dict[str, int] = {}
    stack = [_Collection()]
    for event in yaml.parse(text, Loader=_LOADER):
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            stack.append(_Collection(isinstance(event, yaml.MappingStartEvent), event.anchor))
            if len(stack) > MAX_DEPTH:
                raise UserError(f"line {line} is nested more than {MAX_DEPTH} levels deep")
            continue
        anchor: str | None = None
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            ended = stack.pop()
            size, anchor = ended.size + 1, ended.anchor
        elif isinstance(event, yaml.AliasEvent):
            assert event.anchor is not None
            if event.anchor not in sizes and any(event.anchor == outer.anchor for outer in stack):
                raise UserError(f"line {line}: *{event.anchor} stands within what it stands for")
            size = sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            size, anchor = 1, event.anchor
            stack[-1].note_key(event.value, line)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        stack[-1].add(size)
        if stack[-1].size > MAX_VALUES:
            raise UserError(f"line {line} makes it stand for more than {MAX_VALUES:,} values")


@dataclass
class _Collection:
    is_mapping: bool = False
    anchor: str | None = None
    size: int = 0
    keys: dict[str, int] = field(default_factory=dict)
    _is_at_key: bool = True

    def note_key(self, key: str, line: int) -> None:
        if not self.is_mapping or not self._is_at_key:
            return
        if key in self.keys:
            raise UserError(
                f"{key!r} stands in line {self.keys[key]} and again in line {line}; expected each key once"
            )
        self.keys[key] = line

    def add(self, size: int) -> None:
        self.size += size
        self._is_at_key = not self._is_at_key


def _describe(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error)
    lines = text.splitlines()
    is_tab = mark.line < len(lines) and lines[mark.line][mark.column : mark.column + 1] == "\t"
    problem = "found a tab; expected spaces" if is_tab else getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}"


def _checked_value(text: str) -> Any:
    with contextlib.suppress(yaml.YAMLError):  # the reader reports it
        check_yaml(text)
    return _read_value(text)


# The parser itself reads values on the command line, and the files that they name.
jsonargparse.set_loader("yaml", _checked_value, exceptions=(yaml.YAMLError, ValueError))
