"""Suggestions for commands and options as other programs spell them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

from lit_gfs.configuration.config_files import shipped_config, shipped_configs
from lit_gfs.errors import UserError, closest, did_you_mean, nearest

_COMMANDS = {
    "eval": "validate",
    "evaluate": "validate",
    "val": "validate",
    "play": "test --data.video true",
    "record": "test --data.video true",
    "learn": "fit",
    "run": "fit",
    "train": "fit",
    "resume": "fit --ckpt_path last",
    "continue": "fit --ckpt_path last",
    "config": "configs",
    "list": "configs",
    "show": "configs",
    "sweep": "study",
    "tune": "search",
    "optimize": "search",
    "plot": "report",
    "diff": "compare",
    "help": "--help",
    "version": "--version",
}
"""Commands by the names that other programs have for them."""

_OPTIONS = {
    "alpha": ("data.priority_exponent",),
    "batch": ("data.batch_size", "data.minibatches"),
    "beta": ("data.importance_exponent",),
    "ckpt": ("ckpt_path",),
    "checkpoint": ("ckpt_path",),
    "clip_grad_norm": ("trainer.gradient_clip_val",),
    "cpu": ("trainer.accelerator",),
    "cuda": ("trainer.accelerator",),
    "debug": ("trainer.fast_dev_run",),
    "device": ("trainer.accelerator",),
    "discount": ("model.gamma",),
    "double_q": ("model.double",),
    "env": ("data.env_id",),
    "env_name": ("data.env_id",),
    "epsilon": ("model.epsilon_start", "model.epsilon_end"),
    "evaluation_episodes": ("data.eval_episodes",),
    "game": ("data.env_id",),
    "gpu": ("trainer.accelerator",),
    "gpus": ("trainer.devices",),
    "grad_clip": ("trainer.gradient_clip_val",),
    "hidden_size": ("model.trunk.width",),
    "layers": ("model.trunk.depth",),
    "learning_rate": ("model.optimizer.lr",),
    "load": ("ckpt_path",),
    "log_dir": ("run.root",),
    "logdir": ("run.root",),
    "max_grad_norm": ("trainer.gradient_clip_val",),
    "max_steps": ("data.total_steps",),
    "n_envs": ("data.num_envs",),
    "n_epochs": ("data.epochs",),
    "n_steps": ("data.rollout_steps", "data.n_step", "data.total_steps"),
    "num_atoms": ("model.atoms",),
    "num_layers": ("model.trunk.depth",),
    "num_steps": ("data.rollout_steps", "data.total_steps"),
    "num_timesteps": ("data.total_steps",),
    "output": ("run.root",),
    "output_dir": ("run.root",),
    "per": ("data.priority_exponent",),
    "prioritized": ("data.priority_exponent",),
    "resume": ("ckpt_path",),
    "save_dir": ("run.root",),
    "seed": ("seed_everything",),
    "steps": ("data.total_steps",),
    "timesteps": ("data.total_steps",),
    "total_timesteps": ("data.total_steps",),
    "units": ("model.trunk.width",),
    "workers": ("data.num_envs",),
}
"""Options by the names that other programs have for them, in order."""


def nearest_command(typed: str, commands: Iterable[str]) -> str:
    """Suggest a command for a misspelt one, as `lit_gfs.errors.nearest` does.

    Args:
        typed: The first word of a command line.
        commands: All subcommands.
    """
    if meant := _COMMANDS.get(typed.lower()):
        return did_you_mean([meant])
    if shipped_config(typed) is not None:
        command = "study" if typed.startswith("studies/") else "fit"
        return did_you_mean([f"{command} --config {typed}"])
    return nearest(typed, commands)


def nearest_option(typed: str, options: Collection[str]) -> str:
    """Suggest options for an unknown one: those of `meant_options`, or similar ones.

    Args:
        typed: The option with its dashes, as in ``--depth``.
        options: Full names of all options, as in ``model.trunk.depth``.

    Returns:
        The end of a sentence with up to three options, or ``""``.
    """
    if meant := meant_options(typed, options):
        return meant
    name = typed.lstrip("-")
    if "." in name:
        beside = [option for option in options if option.count(".") == name.count(".")]
        return did_you_mean(f"--{option}" for option in closest(name, beside))
    ends = {option.rpartition(".")[2]: option for option in sorted(options, key=_order, reverse=True)}
    return did_you_mean(f"--{ends[end]}" for end in closest(name, ends))


def meant_options(typed: str, options: Collection[str]) -> str:
    """Suggest the options that other programs call so, that end like an unknown one, or that begin so.

    Args:
        typed: The option, as in ``--depth`` or ``model.depth``.
        options: Full names of all options, as in ``model.trunk.depth``.

    Returns:
        The end of a sentence with up to three options, or ``""``.
    """
    last = typed.lstrip("-").replace("-", "_").rpartition(".")[2].lower()
    ends = {option: option.rpartition(".")[2] for option in sorted(options, key=_order)}
    meant = [option for option in _OPTIONS.get(last, ()) if option in options]
    meant += [option for option, end in ends.items() if end.rstrip("_") == last and option not in meant]
    meant = meant or [option for option, end in ends.items() if end.startswith(f"{last}_")]
    return did_you_mean(f"--{option}" for option in meant[:3])


def _order(option: str) -> tuple[int, int, str]:
    """Return a key that sorts the agent's and the environments' options before those of the Trainer."""
    groups = ("model", "data", "run", "gfs")
    group = option.partition(".")[0]
    return (groups.index(group) if group in groups else len(groups), option.count("."), option)


def check_typed(arguments: Sequence[str]) -> None:
    """Reject words that are neither options nor their values, and suggest what they may stand for.

    Args:
        arguments: The command line, beginning with the subcommand.

    Raises:
        UserError: If there is such a word.
    """
    for before, word in pairwise(arguments):
        takes_value = before.startswith("-") and "=" not in before
        if not word.startswith("-") and not takes_value:
            raise UserError(f"{word} is no known option{_meant_by(word, arguments[0])}")


def _meant_by(word: str, subcommand: str) -> str:
    if word.endswith(".ckpt") or os.path.isdir(word):
        return did_you_mean([f"{subcommand} --ckpt_path {word}"])
    if shipped_config(word) is not None or os.path.isfile(word):
        return did_you_mean([f"{subcommand} --config {word}"])
    if "=" in word:
        return did_you_mean([f"--{word}"])
    return nearest(
        f"{subcommand} --config {word}", (f"{subcommand} --config {name}" for name in shipped_configs())
    )
