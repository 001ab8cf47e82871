"""A configuration as one flat mapping, to compare it with another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PLACES = ("run", "ckpt_path")
"""Options that say where a run is, and not what it is."""


def flat_options(content: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted names.

    A class stands under the name of its option, and its arguments below it, as in ``model.trunk.depth``.
    """
    if not isinstance(content, Mapping) or not content:
        return {prefix: content}
    if "class_path" in content or "init_args" in content:
        name = {prefix: str(content["class_path"]).rpartition(".")[2]} if "class_path" in content else {}
        arguments = content.get("init_args") or {}
        return name | (flat_options(arguments, prefix) if arguments else {})
    values: dict[str, Any] = {}
    for key, value in content.items():
        if prefix or key not in _PLACES:
            values |= flat_options(value, f"{prefix}.{key}" if prefix else str(key))
    return values
