"""YAML representations of enums, paths and durations, in the form that the parser reads."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum
from pathlib import PurePath

import yaml


def _represent_enum(dumper: yaml.SafeDumper, value: Enum) -> yaml.Node:
    # The parser reads members of plain enums by name, and members of string enums by value.
    return dumper.represent_data(value.value if isinstance(value, str) else value.name)


def _represent_text(dumper: yaml.SafeDumper, value: PurePath | timedelta) -> yaml.Node:
    return dumper.represent_str(str(value))


yaml.SafeDumper.add_multi_representer(Enum, _represent_enum)
yaml.SafeDumper.add_multi_representer(PurePath, _represent_text)
yaml.SafeDumper.add_multi_representer(timedelta, _represent_text)
