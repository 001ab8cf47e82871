"""The Trainer's own clipping, where a shipped configuration sets it, gives way to an intervention."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_gfs.configuration.config_files import shipped_configs
from lit_gfs.configuration.switches import GROUP, options_of, read_value

_OPTION = "gradient_clip_val"
WITHOUT = f"--trainer.{_OPTION}=null"
"""The argument that switches the Trainer's clipping off."""


class ReplacedClipping(NamedTuple):
    """A threshold of the Trainer that interventions replace."""

    by: tuple[str, ...]
    """Names of the interventions."""
    value: float
    config: str
    """Name of the shipped configuration that set it."""

    def __str__(self) -> str:
        names = " and ".join(f"{GROUP}.{name}" for name in self.by)
        verb = "replaces" if len(self.by) == 1 else "replace"
        return f"{names} {verb} trainer.{_OPTION} {self.value} of {self.config}"


def replaced_clipping(
    arguments: Sequence[str], contents: Sequence[Mapping[str, Any]], scaling: Collection[str]
) -> ReplacedClipping | None:
    """Find a threshold of a shipped configuration in a run with interventions that scale gradients.

    Both would scale gradients, the Trainer last and unseen. A threshold of the user stays, and such a run is
    refused: the user has chosen both.

    Args:
        arguments: The command line, with a path after each ``--config``, from
            `lit_gfs.configuration.switches.with_typed_switches`.
        contents: The contents of these files, from `lit_gfs.configuration.switches.with_switches`.
        scaling: Names of the interventions that scale gradients.

    Returns:
        The threshold, or ``None`` if there is none, if all of these interventions are off, or if the last one
        to set it was the user: by an option, or in a file that is not shipped.
    """
    shipped = {path.resolve(): name for name, path in shipped_configs().items()}
    is_on = dict.fromkeys(scaling, False)
    value, config = None, None
    remaining = iter(contents)
    for option, typed, _ in options_of(arguments):
        key = option.removeprefix("--")
        if option == "--config" and typed is not None:
            content, origin = next(remaining, {}), shipped.get(Path(typed).resolve())
        else:
            content, origin = _nested(key, typed), None
        for name, state in _mapping(content, GROUP).items():
            is_on[name] = state is not None
        if _OPTION in (chosen := _mapping(content, "trainer")):
            value, config = chosen[_OPTION], origin
    by = tuple(name for name in scaling if is_on[name])
    return ReplacedClipping(by, value, config) if by and value and config is not None else None


def _nested(key: str, typed: str | None) -> dict[str, Any]:
    """Return an option as a configuration would say it, as far as it matters here."""
    group, _, name = key.partition(".")
    if group == GROUP and name:
        outer, dot, _ = name.partition(".")
        return {GROUP: {outer: None if typed == "null" and not dot else {}}}
    if group == "trainer" and typed is not None:
        return {group: {name: typed}} if name else {group: read_value(typed)}
    return {}


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}
