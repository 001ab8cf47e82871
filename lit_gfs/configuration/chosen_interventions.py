"""Interventions that a program names as a configuration does: by key, by recipe, or as callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback

from lit_gfs.callbacks.named import INTERVENTIONS, ON_BY_DEFAULT, in_order, key_of, keys_of
from lit_gfs.configuration.config_files import find_config, shipped_configs
from lit_gfs.configuration.method_names import method_name
from lit_gfs.errors import UserError, nearest
from lit_gfs.utils.signatures import accepted_parameters
from lit_gfs.utils.yaml_files import read_yaml

_RECIPES = "recipes/"
_GROUPS = ("gfs", "trainer")
"""What a recipe may set for an agent that is built already."""


class Chosen(NamedTuple):
    """The callbacks of a run, and what a recipe says of the Trainer."""

    interventions: list[Callback]
    """Those with a key, in the order of `INTERVENTIONS`."""
    others: list[Callback]
    """The user's own ones, in their order."""
    method: str
    """The recipe's name if nothing was changed, else the interventions' short names."""
    trainer_options: dict[str, Any]


def chosen_interventions(gfs: Mapping[str, Any], recipe: str | None, callbacks: Sequence[Callback]) -> Chosen:
    """Build the callbacks that a program chooses.

    Args:
        gfs: By key, as in YAML: a mapping of arguments or ``True`` switches a callback on, ``None`` or
            ``False`` switches it off. It overrides the recipe, argument by argument.
        recipe: The name of a shipped recipe, such as ``gfs``, or a YAML file with the groups ``gfs`` and
            ``trainer``.
        callbacks: Callbacks; one with a key replaces the recipe's.

    Raises:
        UserError: If a key, an argument or the recipe is unknown, or a key is chosen twice.
    """
    content = {} if recipe is None else _read_recipe(recipe)
    given = [key for each in callbacks if (key := key_of(each)) is not None]
    settings: dict[str, dict[str, Any] | None] = {key: {} for key in ON_BY_DEFAULT}
    for chosen in (content.get("gfs") or {}, gfs):
        for key, value in chosen.items():
            _require_key(key)
            settings[key] = _merged(key, settings.get(key), value)
    for key in given:
        if gfs.get(key) not in (None, False):
            raise UserError(
                f"gfs has {key!r}, and callbacks has a {INTERVENTIONS[key].__name__}; expected it once"
            )
    built = [
        _build(key, arguments)
        for key, arguments in settings.items()
        if arguments is not None and key not in given
    ]
    interventions = in_order([*built, *(each for each in callbacks if key_of(each) is not None)])
    is_recipe = recipe is not None and not gfs and not given
    return Chosen(
        interventions,
        [each for each in callbacks if key_of(each) is None],
        Path(str(recipe)).stem if is_recipe else method_name(keys_of(interventions)),
        dict(content.get("trainer") or {}),
    )


def _read_recipe(name: str) -> dict[str, Any]:
    known = [each.removeprefix(_RECIPES) for each in shipped_configs() if each.startswith(_RECIPES)]
    try:
        path = find_config(_RECIPES + name if name in known else name)
    except UserError:
        raise UserError(
            f"recipe {name!r} not found; expected a YAML file or one of {', '.join(known)}"
            f"{nearest(name.removeprefix(_RECIPES), known)}"
        ) from None
    content = read_yaml(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(group), dict | None) for group in _GROUPS
    ):
        raise UserError(f"recipe {name!r} is no mapping of the groups {' and '.join(_GROUPS)}")
    if others := sorted(map(str, content.keys() - set(_GROUPS))):
        raise UserError(
            f"recipe {name!r} sets {', '.join(others)}; expected only {' and '.join(_GROUPS)}, because the "
            "agent and its data are built already: pass such options to their constructors"
        )
    return content


def _require_key(key: str) -> None:
    if key not in INTERVENTIONS:
        raise UserError(
            f"gfs has the key {key!r}; expected one of {', '.join(INTERVENTIONS)}"
            f"{nearest(str(key), INTERVENTIONS)}"
        )


def _merged(key: str, before: dict[str, Any] | None, value: Any) -> dict[str, Any] | None:
    """Return the arguments of a callback after another choice; ``None`` if it is off."""
    if value is None or value is False:
        return None
    if value is True:
        return before or {}
    if not isinstance(value, Mapping):
        raise UserError(
            f"gfs[{key!r}] is {value!r}; expected a mapping of arguments, True or None (callbacks takes "
            "objects)"
        )
    if "class_path" in value:  # as a configuration writes it
        name = INTERVENTIONS[key].__name__
        if str(value["class_path"]).rpartition(".")[2] != name:
            raise UserError(f"gfs[{key!r}] is {value['class_path']!r}; expected {name}")
        value = value.get("init_args") or {}
    return {**(before or {}), **value}


def _build(key: str, arguments: dict[str, Any]) -> Callback:
    kind = INTERVENTIONS[key]
    accepted = accepted_parameters(kind)
    for name in arguments:
        if name not in accepted:
            raise UserError(
                f"gfs[{key!r}] has {name!r}; {kind.__name__} takes {', '.join(accepted) or 'no arguments'}"
                f"{nearest(str(name), accepted)}"
            )
    return kind(**arguments)
