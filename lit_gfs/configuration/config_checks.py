"""Checks for mistakes in a configuration that jsonargparse accepts, such as unknown keys without a value,
missing numbers, and callables that are not classes."""

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
from lit_gfs.configuration.switches import with_switches
from lit_gfs.errors import UserError, nearest, shown
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
"""Base classes of the classes that a configuration may name.

jsonargparse would accept any callable for some arguments, and some callables start processes or load files.
"""

_NETWORKS = ("torch.nn.", "lit_gfs.", "lightning.", "pytorch_lightning.", "lightning_fabric.")
"""Packages that may define networks and their parts."""

_EXPECTED_KINDS = "a network, optimizer, callback, logger, profiler, strategy or plugin"


_TRAINER_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
}
"""Smallest valid values of options that the Trainer does not check."""

GROUPS = ("trainer", "run", "gfs")
"""Top-level keys with options below them."""


def read_configs(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Read all ``--config`` files of a command line.

    Args:
        arguments: Arguments of the command line, with a path after each ``--config``.

    Raises:
        UserError: If a file cannot be read, or is not a mapping.
    """
    files = [value for option, value in pairwise(arguments) if option == "--config"]
    contents = []
    for file in files:
        content = with_switches(with_present_options(read_yaml(Path(file))))
        if content is None:
            raise UserError(f"--config {file!r} is empty; expected keys such as model, data and trainer")
        if not isinstance(content, dict):
            kind = "a list" if isinstance(content, list) else shown(content)
            raise UserError(f"--config {file!r} is {kind}; expected keys such as model, data and trainer")
        if {"factors", "compare"} <= content.keys():
            raise UserError(f"--config {file!r} is a study; run it with: study --config {file}")
        contents.append(content)
    return contents


def check_keys(content: Mapping[Any, Any], options: Collection[str]) -> None:
    """Check the top-level keys of a configuration, and those below `GROUPS`.

    A key with an empty value, as in ``gfs: {path_init: {}}``, enables a part. The parser would silently
    ignore a misspelt one.

    Args:
        content: Content of the file.
        options: Dotted names of the parser's options, such as ``gfs.path_init``.

    Raises:
        UserError: If a key is unknown.
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
            or_null = ", or null for none of them" if group == "gfs" else ""
            raise UserError(
                f"{group} is {shown(chosen)}; expected keys such as {', '.join(sorted(known)[:6])}{or_null}"
            )
        _check_known(chosen, known, f"{group}.")


def check_groups(config: Namespace) -> None:
    """Reject values in place of a group of options, text that is not UTF-8, and invalid Trainer options.

    Raises:
        UserError: If there is such a value.
    """
    for group in ("trainer", "run"):
        if group in config and not isinstance(config[group], Namespace):
            raise UserError(
                f"{group} is {shown(config[group])}; expected options below it, as in --{group}.<name>"
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
    # Lightning starts one process per device, without a limit.
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
    """Return whether other nodes are configured; otherwise Lightning would wait for them forever."""
    # The environments that Lightning detects, in its order.
    clusters = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
    chosen = (named.cls for named in named_classes(config.trainer))
    return (
        "MASTER_ADDR" in os.environ
        or any(cluster.detect() for cluster in clusters)
        or any(inspect.isclass(cls) and issubclass(cls, ClusterEnvironment) for cls in chosen)
    )


def check_no_pipes(arguments: Sequence[str], contents: Sequence[Any]) -> None:
    """Reject paths of pipes and devices as values, because the parser would read them and might never finish.

    Args:
        arguments: Arguments of the command line.
        contents: Contents of the configurations.

    Raises:
        UserError: If there is such a value.
    """
    typed = (argument.partition("=")[2] or argument for argument in arguments)
    for value in (*typed, *_leaves(list(contents))):
        if isinstance(value, str) and _is_pipe(value):
            raise UserError(f"{value!r} is a pipe or a device; expected a file, or another value")


def _is_pipe(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # not an existing path
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_empty_keys(content: Mapping[str, Any], config: Namespace) -> None:
    """Reject unknown arguments of classes with the value ``{}``, because the parser drops them silently.

    Args:
        content: Content of a configuration.
        config: The parsed configuration.

    Raises:
        UserError: If there is such a key.
    """
    for named in named_classes(config):
        written = _written_at(content, named.place)
        if written is None:
            continue
        class_path = written.get("class_path", named.cls.__name__)
        if str(class_path).rpartition(".")[2] != named.cls.__name__:
            continue  # a later configuration has replaced this class
        arguments = {**written, **(written.get("init_args") or {})}
        for key, value in arguments.items():
            if value == {} and key not in {*named.parameters, "class_path", "init_args", "dict_kwargs"}:
                raise UserError(f"{named.place}{key} is no known key{nearest(str(key), named.parameters)}")


def check_values(config: Namespace) -> None:
    """Reject invalid values of arguments before any object is built.

    Invalid values are: ``null`` for a required number, string, boolean or class; non-finite numbers and
    numbers beyond 64 bits; classes and functions that are not of `KINDS`, and arguments that a class does not
    list, unless the package is trusted; environments whose module is not trusted.

    Raises:
        UserError: If there is such a value.
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
    """Describe the values of an argument that cannot be ``null``; ``None`` for other types."""
    if hint in (int, float, bool, str):
        return hint.__name__
    if typing.get_origin(hint) is typing.Literal and None not in typing.get_args(hint):
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    return None


def _check_env_id(place: str, env_id: str) -> None:
    # Gymnasium imports the module before the colon.
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
            raise UserError(f"{place} is {shown(number)}; expected a number of less than 4e18")


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the elements of nested lists, tuples, sets and dictionaries."""
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
            raise UserError(f"{where}{key} is no known key; expected text, not {shown(key)}")
        _check_text_keys(value, f"{where}{key}.")


def _check_kind(place: str, named: Any) -> None:
    path = f"{named.__module__}.{named.__qualname__}"
    if not _is_of_kind(named) and not is_trusted(path):
        package = path.partition(".")[0]
        raise UserError(f"{place} is {path!r}; expected {_EXPECTED_KINDS}, unless you type --trust {package}")


def _is_of_kind(named: Any) -> bool:
    if not (inspect.isclass(named) and issubclass(named, KINDS)):
        return False
    # In other libraries, environments, interpreters and downloaders are also subclasses of nn.Module.
    return not issubclass(named, nn.Module) or named.__module__.startswith(_NETWORKS)


def _check_unlisted(place: str, cls: Any, unlisted: Mapping[str, Any]) -> None:
    """Reject arguments that a class does not list, because their effect is unknown."""
    if unlisted and not is_trusted(cls.__module__):
        package = cls.__module__.partition(".")[0]
        raise UserError(
            f"{place}dict_kwargs is {shown(dict(unlisted))}; expected arguments that {cls.__name__} lists, "
            f"under init_args, unless you type --trust {package}"
        )


def _check_known(content: Mapping[Any, Any], known: Collection[str], where: str) -> None:
    for key in content:
        # A plus appends to a list, as in callbacks+.
        if str(key).removesuffix("+") not in known:
            raise UserError(f"{where}{key} is no known key{nearest(str(key), known)}")


def _written_at(content: Any, place: str) -> dict[str, Any] | None:
    """Return the mapping at a place of a configuration; ``init_args`` may be omitted on the way."""
    for key in filter(None, place.split(".")):
        if isinstance(content, dict) and key not in content:
            content = content.get("init_args")
        if not isinstance(content, dict):
            return None
        content = content.get(key)
    return content if isinstance(content, dict) else None
