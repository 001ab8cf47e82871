"""Mistakes in a configuration that jsonargparse lets pass: unknown keys without a value, missing numbers, and
callables that are no class."""

from __future__ import annotations

import importlib
import inspect
import math
import operator
import os
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_gfs.config_trust import is_trusted, refusal
from lit_gfs.errors import LONGEST_SHOWN, UserError, nearest
from lit_gfs.yaml_files import read_yaml

KINDS = (
    nn.Module,
    LightningDataModule,
    Optimizer,
    LRScheduler,
    Callback,
    Logger,
    Profiler,
    Strategy,
    Accelerator,
    Precision,
    ClusterEnvironment,
    CheckpointIO,
    LayerSync,
)
"""Classes that a configuration may name.

Where any callable is accepted others would do; some of those start processes or load what they are given.
"""

_NETWORKS = ("torch.nn.", "lit_gfs.", "lightning.", "pytorch_lightning.", "lightning_fabric.")
"""Where a class that is a network, or a part of one, has to be defined."""

_EXPECTED_KINDS = "a network, optimizer, callback, logger, profiler, strategy or plugin"


_TRAINER_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
}
"""Least values that the Trainer does not check itself."""

GROUPS = ("trainer", "run", "gfs")
"""Top-level keys with options of their own below them."""


def read_configs(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Read each ``--config`` file of a command line.

    Args:
        arguments: What was typed, with a path after each ``--config``.

    Raises:
        UserError: If one of them cannot be read, or is no mapping.
    """
    files = [value for option, value in pairwise(arguments) if option == "--config"]
    contents = []
    for file in files:
        content = read_yaml(Path(file))
        if content is None:
            raise UserError(f"--config {file!r} is empty; expected keys such as model, data and trainer")
        if not isinstance(content, dict):
            kind = "a list" if isinstance(content, list) else _shown(content)
            raise UserError(f"--config {file!r} is {kind}; expected keys such as model, data and trainer")
        contents.append(content)
    return contents


def check_keys(content: Mapping[Any, Any], options: Collection[str]) -> None:
    """Check the keys at the top of a configuration, and those below ``gfs``.

    A key whose value is empty, as in ``gfs: {path_init: {}}``, switches something on; misspelt, it would be
    passed over in silence.

    Args:
        content: What stands in the file.
        options: The dotted names that the parser knows, such as ``gfs.path_init``.

    Raises:
        UserError: If a key is not known.
    """
    if "trust" in content:
        raise UserError("trust cannot be set in a configuration; type it, as in: --trust my_package")
    _check_text_keys(content, "")
    _check_known(content, {option.partition(".")[0] for option in options}, "")
    for group in GROUPS:
        known = {option.split(".")[1] for option in options if option.startswith(f"{group}.")}
        chosen = content.get(group, {})
        if chosen is None and group == "gfs":
            continue
        if not isinstance(chosen, dict):
            raise UserError(
                f"{group} is {_shown(chosen)}; expected keys such as {', '.join(sorted(known)[:6])}"
            )
        _check_known(chosen, known, f"{group}.")


def check_groups(config: Namespace) -> None:
    """Refuse a value in the place of a group of options, and numbers that the Trainer would stumble over.

    Raises:
        UserError: If there is one.
    """
    for group in ("trainer", "run"):
        if group in config and not isinstance(config[group], Namespace):
            raise UserError(
                f"{group} is {_shown(config[group])}; expected options below it, as in --{group}.<name>"
            )
    seed = config.get("seed_everything")
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise UserError(f"seed_everything is {seed}; expected a whole number from 0 to {2**32 - 1}")
    for name, value in vars(config.trainer).items():
        _check_number(f"trainer.{name}", value, None)
    for name, least in _TRAINER_LEAST.items():
        value = config.trainer.get(name)
        if isinstance(value, int | float) and value < least:
            raise UserError(f"trainer.{name} is {value}; expected a number of at least {least}")
    # Lightning starts as many processes as it is asked for.
    devices, most = str(config.trainer.get("devices")), max(2, os.cpu_count() or 1)
    if devices.isdecimal() and int(devices) > most:
        raise UserError(f"trainer.devices is {devices}; expected at most {most} on this machine")


def check_empty_keys(content: Mapping[str, Any], config: Namespace) -> None:
    """Refuse keys of no class's arguments whose value is ``{}``: the parser drops them without a word.

    Args:
        content: What stands in a configuration.
        config: What the parser made of all of them.

    Raises:
        UserError: If there is one.
    """
    for named in _classes(config, ""):
        written = _written_at(content, named.place)
        if written is None:
            continue
        class_path = written.get("class_path", named.cls.__name__)
        if str(class_path).rpartition(".")[2] != named.cls.__name__:
            continue  # of another class, which a later configuration replaced
        arguments = {**written, **(written.get("init_args") or {})}
        for key, value in arguments.items():
            if value == {} and key not in {*named.parameters, "class_path", "init_args", "dict_kwargs"}:
                raise UserError(f"{named.place}{key} is no known key{nearest(str(key), named.parameters)}")


def check_values(config: Namespace) -> None:
    """Refuse what no argument may be, before anything is built.

    That is ``null`` for a number, a string or a switch that has to have a value; what is no finite number, or
    beyond 64 bits; a class or a function that is not of `KINDS`, or arguments that a class does not list,
    unless its package is trusted; and an environment whose module is not trusted.

    Raises:
        UserError: If there is one.
    """
    for named in _classes(config, ""):
        _check_kind(named.place.removesuffix("."), named.cls)
        _check_unlisted(named.place, named.cls, named.unlisted)
        hints, parameters = named.hints, named.parameters
        for name, value in named.arguments.items():
            place = f"{named.place}{name}"
            if value is None and hints.get(name) in (int, float, bool, str):
                raise UserError(f"{place} is null; expected {hints[name].__name__}")
            default = parameters[name].default if name in parameters else None
            _check_number(place, value, default)
            for leaf in _leaves(value):
                if (inspect.isroutine(leaf) or inspect.isclass(leaf)) and leaf is not default:
                    _check_kind(place, leaf)
        # Gymnasium imports what stands before the colon.
        module, colon, _ = str(named.arguments.get("env_id") or "").rpartition(":")
        if colon and not is_trusted(module):
            raise UserError(refusal(f"{named.place}env_id", named.arguments["env_id"]))


def _check_number(place: str, value: Any, default: Any) -> None:
    for number in _leaves(value):
        if isinstance(number, float) and not math.isfinite(number) and number != default:
            raise UserError(f"{place} is {number}; expected a finite number")
        if isinstance(number, int) and abs(number) >= 2**62:
            raise UserError(f"{place} is {_shown(number)}; expected a number of less than 4e18")


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what lists, tuples, sets and dictionaries hold, however deep."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple | set):
        yield value
        return
    for item in value:
        yield from _leaves(item)


def _check_text_keys(content: Any, where: str) -> None:
    for key, value in content.items() if isinstance(content, dict) else ():
        if not isinstance(key, str):
            raise UserError(f"{where}{key} is no known key; expected text, not {_shown(key)}")
        _check_text_keys(value, f"{where}{key}.")


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def _check_kind(place: str, named: Any) -> None:
    path = f"{named.__module__}.{named.__qualname__}"
    if not _is_of_kind(named) and not is_trusted(path):
        package = path.partition(".")[0]
        raise UserError(f"{place} is {path!r}; expected {_EXPECTED_KINDS}, unless you type --trust {package}")


def _is_of_kind(named: Any) -> bool:
    if not (inspect.isclass(named) and issubclass(named, KINDS)):
        return False
    # Environments, interpreters and downloaders of other libraries are modules too.
    return not issubclass(named, nn.Module) or named.__module__.startswith(_NETWORKS)


def _check_unlisted(place: str, cls: Any, unlisted: Mapping[str, Any]) -> None:
    """Refuse arguments that a class does not list: nothing is known of what it does with them."""
    if unlisted and not is_trusted(cls.__module__):
        package = cls.__module__.partition(".")[0]
        raise UserError(
            f"{place}dict_kwargs is {_shown(dict(unlisted))}; expected arguments that {cls.__name__} lists, "
            f"under init_args, unless you type --trust {package}"
        )


def _check_known(content: Mapping[Any, Any], known: Collection[str], where: str) -> None:
    for key in content:
        # A list is added to with a plus, as in callbacks+.
        if str(key).removesuffix("+") not in known:
            raise UserError(f"{where}{key} is no known key{nearest(str(key), known)}")


def _written_at(content: Any, place: str) -> dict[str, Any] | None:
    """Return what a configuration says at a place; it may leave ``init_args`` out on the way there."""
    for key in filter(None, place.split(".")):
        if isinstance(content, dict) and key not in content:
            content = content.get("init_args")
        if not isinstance(content, dict):
            return None
        content = content.get(key)
    return content if isinstance(content, dict) else None


class _Named(NamedTuple):
    """A class that a configuration names."""

    place: str
    """Where it stands, as in ``model.trunk.``."""
    cls: Any
    arguments: dict[str, Any]
    unlisted: dict[str, Any]
    """Those of its arguments that it accepts and does not list."""

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What it accepts."""
        return inspect.signature(self.cls).parameters

    @property
    def hints(self) -> dict[str, Any]:
        """Types of its arguments, as far as it says them."""
        try:
            return typing.get_type_hints(self.cls.__init__)
        except (NameError, TypeError, AttributeError):
            return {}


def _classes(config: Any, place: str) -> Iterator[_Named]:
    # Only what the parser has looked at: what looks like a class within plain data stays data.
    if isinstance(config, list | tuple | dict):
        items = config.items() if isinstance(config, dict) else enumerate(config)
        for key, item in items:
            yield from _classes(item, f"{place}{key}.")
    if not isinstance(config, Namespace):
        return
    values = vars(config)
    if isinstance(values.get("class_path"), str):
        module, _, name = values["class_path"].rpartition(".")
        unlisted = dict(values.get("dict_kwargs") or {})
        values = vars(values.get("init_args") or Namespace())
        yield _Named(place, operator.attrgetter(name)(importlib.import_module(module)), values, unlisted)
    for key, value in values.items():
        yield from _classes(value, f"{place}{key}.")
