"""Mistakes in a configuration that jsonargparse lets pass: unknown keys without a value, missing numbers, and
callables that are no class."""

from __future__ import annotations

import inspect
import math
import os
import re
import stat
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.environments import (
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_gfs.configuration.former_options import with_present_options
from lit_gfs.configuration.named_classes import named_classes
from lit_gfs.errors import LONGEST_SHOWN, UserError, nearest
from lit_gfs.utils.trust import is_trusted
from lit_gfs.utils.yaml_files import read_yaml

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
        content = with_present_options(read_yaml(Path(file)))
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
    """Refuse a value in the place of a group of options, text that cannot be written down, and numbers that
    the Trainer would stumble over.

    Raises:
        UserError: If there is one.
    """
    for group in ("trainer", "run"):
        if group in config and not isinstance(config[group], Namespace):
            raise UserError(
                f"{group} is {_shown(config[group])}; expected options below it, as in --{group}.<name>"
            )
    for key, value in config.items():
        if isinstance(value, str) and not value.isascii() and re.search(r"[\ud800-\udfff]", value):
            place = key.replace(".init_args", "")
            raise UserError(f"{place} is {value!r}; expected text in UTF-8")
    seed = config.get("seed_everything")
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise UserError(f"seed_everything is {seed}; expected a whole number from 0 to {2**32 - 1}")
    for name, value in vars(config.trainer).items():
        _check_number(f"trainer.{name}", value, None)
    for name, least in _TRAINER_LEAST.items():
        value = config.trainer.get(name)
        if isinstance(value, int | float) and value < least:
            raise UserError(f"trainer.{name} is {value}; expected a number of at least {least}")
    strategy = config.trainer.get("strategy")
    if isinstance(strategy, str) and re.search("spawn|fork|notebook", strategy):
        raise UserError(
            f"trainer.strategy is {strategy!r}, which hands environments to other processes; expected 'ddp'"
        )
    # Lightning starts as many processes as it is asked for.
    devices, most = str(config.trainer.get("devices")), max(2, os.cpu_count() or 1)
    if devices.isdecimal() and int(devices) > most:
        raise UserError(f"trainer.devices is {devices}; expected at most {most} on this machine")
    nodes = config.trainer.get("num_nodes")
    if isinstance(nodes, int) and nodes > 1 and not _has_other_nodes(config):
        raise UserError(
            f"trainer.num_nodes is {nodes}; expected 1, as nothing tells of other nodes: start it by srun, "
            "torchrun, mpirun or jsrun, or set MASTER_ADDR"
        )


def _has_other_nodes(config: Namespace) -> bool:
    """Say whether other nodes are known of; without, Lightning would wait for them for ever."""
    # Those that Lightning looks for, in its order.
    clusters = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
    chosen = (named.cls for named in named_classes(config.trainer))
    return (
        "MASTER_ADDR" in os.environ
        or any(cluster.detect() for cluster in clusters)
        or any(inspect.isclass(cls) and issubclass(cls, ClusterEnvironment) for cls in chosen)
    )


def check_no_pipes(arguments: Sequence[str], contents: Sequence[Any]) -> None:
    """Refuse values that are the path of a pipe or a device: the parser would read it, and may never end.

    Args:
        arguments: What was typed.
        contents: What stands in the configurations.

    Raises:
        UserError: If there is one.
    """
    typed = (argument.partition("=")[2] or argument for argument in arguments)
    for value in (*typed, *_leaves(list(contents))):
        if isinstance(value, str) and _is_pipe(value):
            raise UserError(f"{value!r} is a pipe or a device; expected a file, or another value")


def _is_pipe(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # no path at all
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_empty_keys(content: Mapping[str, Any], config: Namespace) -> None:
    """Refuse keys of no class's arguments whose value is ``{}``: the parser drops them without a word.

    Args:
        content: What stands in a configuration.
        config: What the parser made of all of them.

    Raises:
        UserError: If there is one.
    """
    for named in named_classes(config):
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

    That is ``null`` for a number, a string, a switch or a class that has to have a value; what is no finite
    number, or beyond 64 bits; a class or a function that is not of `KINDS`, or arguments that a class does
    not list, unless its package is trusted; and an environment whose module is not trusted.

    Raises:
        UserError: If there is one.
    """
    for named in named_classes(config):
        _check_kind(named.place.removesuffix("."), named.cls)
        _check_unlisted(named.place, named.cls, named.unlisted)
        hints, parameters = named.hints, named.parameters
        for name, value in named.arguments.items():
            place = f"{named.place}{name}"
            if value is None and (expected := _required_kind(hints.get(name))):
                raise UserError(f"{place} is null; expected {expected}")
            default = parameters[name].default if name in parameters else None
            if value is None and typing.get_origin(hints.get(name)) is Callable and default is not None:
                raise UserError(f"{place} is null; expected a class")
            _check_number(place, value, default)
            for leaf in _leaves(value):
                if (inspect.isroutine(leaf) or inspect.isclass(leaf)) and leaf is not default:
                    _check_kind(place, leaf)
        if isinstance(env_id := named.arguments.get("env_id"), str):
            _check_env_id(f"{named.place}env_id", env_id)


def _required_kind(hint: Any) -> str | None:
    """Say what a plain argument expects that cannot be ``null``."""
    if hint in (int, float, bool, str):
        return hint.__name__
    if typing.get_origin(hint) is typing.Literal and None not in typing.get_args(hint):
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    return None


def _check_env_id(place: str, env_id: str) -> None:
    # Gymnasium imports what stands before the colon.
    module, colon, name = env_id.rpartition(":")
    if colon and not is_trusted(module):
        is_module = all(part.isidentifier() for part in module.split("."))
        advice = f", or type --trust {module.partition('.')[0]} if you trust that module" if is_module else ""
        raise UserError(f"{place} is {env_id!r}, and {module!r} is not imported; expected {name!r}{advice}")


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
