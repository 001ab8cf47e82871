"""Which configuration files a command line means: paths, shipped names, or the one beside a checkpoint."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import lit_gfs.configs
from lit_gfs.errors import UserError, nearest

CONFIG_DIRECTORY = Path(lit_gfs.configs.__path__[0])
CONFIG_NAME = "config.yaml"
"""What a run directory calls its resolved configuration."""


def shipped_configs() -> dict[str, Path]:
    """Return every shipped configuration by name: ``quickstart``, ``ppo_cartpole`` ..."""
    return {
        path.relative_to(CONFIG_DIRECTORY).with_suffix("").as_posix(): path
        for path in sorted(CONFIG_DIRECTORY.rglob("*.yaml"))
    }


def find_config(name: str) -> Path:
    """Find a configuration by path or by shipped name, with or without ``configs/`` and ``.yaml``.

    Raises:
        UserError: If there is none; the message names the nearest shipped ones.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_configs()
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if short in shipped:
        return shipped[short]
    raise UserError(
        f"--config {name!r} not found; expected a YAML file or a shipped name such as 'quickstart'"
        f"{nearest(short, shipped)}"
    )


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace configuration names by paths, and add a checkpoint's own configuration where none is given.

    Args:
        arguments: What was typed after the program's name.

    Returns:
        Arguments in which every ``--config`` is an existing file.

    Raises:
        UserError: If a configuration or a checkpoint does not exist.
    """
    completed: list[str] = []
    has_config = False
    checkpoint: Path | None = None
    for option, value in _pairs(arguments):
        if option in ("--config", "-c") and value is not None:
            has_config = True
            completed += ["--config", str(find_config(value))]
        else:
            if option == "--ckpt_path" and value not in (None, "null"):
                assert value is not None
                checkpoint = find_checkpoint(value)
            completed.append(option)
            if value is not None:
                completed.append(value)
    if checkpoint is not None and not has_config:
        directory = find_run(checkpoint)
        if directory is None:
            raise UserError(
                f"--ckpt_path {str(checkpoint)!r} has no {CONFIG_NAME} beside it; give one with --config"
            )
        # Directly after the subcommand, so that everything typed overrides it.
        completed[1:1] = ["--config", str(directory / CONFIG_NAME)]
    return completed


def find_checkpoint(name: str) -> Path:
    """Return the path of an existing checkpoint.

    Raises:
        UserError: If it is not a checkpoint file; the message names those in the same directory.
    """
    path = Path(name)
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise UserError(
                f"--ckpt_path {name!r} is no checkpoint, or a damaged one; expected one that fit wrote"
            )
        return path
    neighbours = [str(other) for other in sorted(path.parent.glob("*.ckpt"))]
    found = f"; there are {', '.join(map(repr, neighbours))}" if neighbours else ""
    raise UserError(f"--ckpt_path {name!r} not found; expected a checkpoint file{found}")


def find_run(checkpoint: Path) -> Path | None:
    """Return the directory of the run that wrote a checkpoint: the checkpoint's, or one up."""
    parents = list(checkpoint.absolute().parents)[:2]
    return next((directory for directory in parents if (directory / CONFIG_NAME).is_file()), None)


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Split ``--option value`` and ``--option=value``, for the options that this module reads."""
    remaining = iter(arguments)
    for argument in remaining:
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c", "--ckpt_path"):
            yield argument, None
        elif equals:
            yield option, value
        else:
            yield option, next(remaining, None)
