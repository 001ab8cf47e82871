"""What tests of resumed runs compare: everything that a run leaves behind, but for times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lit_gfs.buffers.shards import ReplayShards, find_replay
from lit_gfs.datamodules.replay import make_replay_buffer
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.utils.checksummed_files import read_checksummed
from support.accelerator import TOLERANCE
from support.event_files import read_scalars

_LEFT_OUT = {"event_files", "replay", "current_score", "on_device"}
"""Entries of a checkpoint that name files and sizes, that Lightning neither restores nor uses, or that the
CPU has none of: the state of another device's generator."""


def differences(left: Any, right: Any, place: str = "", tolerance: float = 0.0) -> Iterator[str]:
    """Name the places in which two nested values differ: bit for bit, or by more than a tolerance.

    Args:
        left: Dictionaries and lists of tensors, numbers and text.
        right: What it is held against.
        place: The name of the place where they are.
        tolerance: By how much floating-point numbers may differ, relative to the larger one, or near 0.
    """
    if isinstance(left, dict) and isinstance(right, dict):
        for key in left.keys() | right.keys():
            if key in _LEFT_OUT:
                continue
            if key not in left or key not in right:
                yield f"{place}/{key} is on one side only"
            else:
                yield from differences(left[key], right[key], f"{place}/{key}", tolerance)
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) != len(right):
            yield f"{place} has {len(left)} and {len(right)} entries"
        for index, (one, other) in enumerate(zip(left, right, strict=False)):
            yield from differences(one, other, f"{place}/{index}", tolerance)
    elif isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        if left.dtype != right.dtype or left.shape != right.shape:
            yield f"{place} is {left.dtype} {tuple(left.shape)} and {right.dtype} {tuple(right.shape)}"
        elif left.numpy().tobytes() != right.numpy().tobytes() and not _are_close(left, right, tolerance):
            yield f"{place} differs"
    elif isinstance(left, float) and isinstance(right, float) and tolerance:
        if not _are_close(torch.tensor(left), torch.tensor(right), tolerance):
            yield f"{place} is {left!r} and {right!r}"
    elif type(left) is not type(right) or left != right:
        yield f"{place} is {left!r} and {right!r}"


def _are_close(left: torch.Tensor, right: torch.Tensor, tolerance: float) -> bool:
    is_exact = tolerance == 0 or not left.is_floating_point()
    return not is_exact and torch.allclose(left, right, tolerance, tolerance, equal_nan=True)


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what a run logged: step and value of every point by tag, but for times of the clock."""
    logged = read_scalars(run)
    logged.pop("time/steps_per_second", None)
    return logged


def replay_content(checkpoint: Path) -> Any:
    """Return all transitions of a checkpoint's replay memory by index, if it has one."""
    state = read_checksummed(checkpoint).get("ReplayDataModule", {})
    if "replay" not in state:
        return None
    settings = state["settings"]
    options = {"values_per_actuator": 3} if settings["env_id"].startswith("dm_control") else {}
    env = make_env(settings["env_id"], 1, **options)
    storage: Any = make_replay_buffer(
        EnvSpec.from_env(env), settings["buffer_size"], settings["num_envs"], 1
    ).storage
    env.close()
    ReplayShards(find_replay(checkpoint)).load(storage, state["replay"][0])
    return storage.get(slice(None)).to_dict()


def run_differences(run: Path, other: Path, tolerance: float = TOLERANCE) -> list[str]:
    """Name in what two runs differ that have ended: last checkpoint, replay memory, logged values.

    Args:
        run: A run's directory.
        other: Another's.
        tolerance: As for `differences`; by default none on the CPU.
    """
    last = "last.ckpt"
    pairs = {
        "": (read_checksummed(run / last), read_checksummed(other / last)),
        "/transitions": (replay_content(run / last), replay_content(other / last)),
        "/logged": (scalars(run), scalars(other)),
    }
    return [
        each for place, pair in pairs.items() for each in differences(*pair, place=place, tolerance=tolerance)
    ]
