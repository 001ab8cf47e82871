"""Search for configuration files: by path, by shipped name, or next to a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import lit_gfs.configs
from lit_gfs.errors import UserError, nearest
from lit_gfs.runs.layout import CONFIG_NAME, LAST, directory_of, find_run, latest_run

CONFIG_DIRECTORY = Path(lit_gfs.configs.__path__[0])
_RUN_OPTIONS = ("--run.root", "--run.name", "--run.version")


def shipped_configs() -> dict[str, Path]:
    """Return the paths of all shipped configurations by name, such as ``quickstart``."""
    return {
        path.relative_to(CONFIG_DIRECTORY).with_suffix("").as_posix(): path
        for path in sorted(CONFIG_DIRECTORY.rglob("*.yaml"))
    }


def find_config(name: str) -> Path:
    """Find a configuration by path or by shipped name, with or without ``configs/`` and ``.yaml``.

    Raises:
        UserError: If there is no such configuration; the message suggests similar shipped names.
    """
    if os.path.isfile(name):  # Path.is_file raises an error for names that are too long
        return Path(name)
    if os.path.isdir(name):
        raise UserError(f"--config {name!r} is a directory; expected a YAML file or a shipped name")
    if (path := shipped_config(name)) is not None:
        return path
    raise UserError(
        f"--config {name!r} not found; expected a YAML file or a name that `lit_gfs configs` lists"
        f"{nearest(_short(name), shipped_configs())}"
    )


def shipped_config(name: str) -> Path | None:
    """Return the path of a shipped configuration; ``configs/`` and ``.yaml`` may stand around its name."""
    return shipped_configs().get(_short(name))


def _short(name: str) -> str:
    return name.removeprefix("configs/").removesuffix(".yaml")


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace configuration names by paths; without any, add the configuration of the checkpoint.

    Args:
        arguments: Arguments of the command line, after the program's name.

    Returns:
        Arguments in which every ``--config`` is an existing file.

    Raises:
        UserError: If a configuration or a checkpoint does not exist.
    """
    completed: list[str] = []
    has_config = False
    checkpoint: str | None = None
    run: dict[str, str] = {}
    for option, value in _pairs(arguments):
        if option in ("--config", "-c") and value is not None:
            has_config = True
            completed += ["--config", str(find_config(value))]
        else:
            if value not in (None, "null"):
                assert value is not None
                if option == "--ckpt_path":
                    checkpoint = value
                elif option in _RUN_OPTIONS:
                    run[option.removeprefix("--run.")] = value
            completed.append(option)
            if value is not None:
                completed.append(value)
    if checkpoint is not None and not has_config:
        directory = latest_run(**run) if checkpoint == LAST else find_run(directory_of(checkpoint))
        if directory is None:
            raise UserError(
                f"--ckpt_path {checkpoint!r} has no intact {CONFIG_NAME} beside it; give one with --config"
            )
        # Insert it directly after the subcommand, so all other arguments override it.
        completed[1:1] = ["--config", str(directory / CONFIG_NAME)]
        if checkpoint == LAST:
            place = {
                "root": directory.parent.parent,
                "name": directory.parent.name,
                "version": directory.name,
            }
            completed += [f"--run.{part}={value}" for part, value in place.items()]
    return completed


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield pairs of option and value for the options of this module; other arguments have no value."""
    remaining = iter(arguments)
    for argument in remaining:
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c", "--ckpt_path", *_RUN_OPTIONS):
            yield argument, None
        elif equals:
            yield option, value
        else:
            yield option, next(remaining, None)
