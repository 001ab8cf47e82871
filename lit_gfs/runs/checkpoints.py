"""Finds the checkpoint that a run resumes from: the named one, or the newest intact one."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.connectors import checkpoint_connector

from lit_gfs.buffers.shards import ReplayShards, find_replay
from lit_gfs.errors import UserError
from lit_gfs.runs.layout import LAST_NAME, PREVIOUS_NAME, directory_of
from lit_gfs.utils.checksummed_files import read_checksummed

_KINDS = {
    "state_dict": dict,
    "callbacks": dict,
    "learner": dict,
    "loops": dict,
    "optimizer_states": list,
    "pytorch-lightning_version": str,
}
_TO_GO_ON = {"loops", "optimizer_states"}
"""Entries that training needs to resume."""


def damage_of(checkpoint: Path, with_replay: bool = True) -> str | None:
    """Return the damage of a checkpoint.

    Args:
        checkpoint: The file.
        with_replay: Whether training will resume from it. If so, every byte of its replay shards is checked.

    Returns:
        One line that names the damaged file, or ``None`` if the checkpoint is intact.
    """
    try:
        _read(checkpoint, with_replay)
    except UserError as error:
        return str(error)
    return None


def newest_intact(directory: Path, with_replay: bool = True) -> tuple[Path | None, list[str]]:
    """Find the checkpoint of a directory to resume from.

    Args:
        directory: Directory of the checkpoints, ``*.ckpt``: ``last.ckpt`` if it is intact, else
            ``previous.ckpt``, else the one with the most environment steps; of equal ones the one written
            last. The furthest is not always the latest, because a run may have gone back to an earlier one.
        with_replay: As for `damage_of`. If true, checkpoints for evaluating are passed over.

    Returns:
        The checkpoint, or ``None`` if there is no intact one; and the damages of those passed over.
    """
    found: list[tuple[tuple[int, ...], Path]] = []
    damages: list[str] = []
    for path in sorted(directory.glob("*.ckpt")):
        try:
            content = _read(path, with_replay=False)
            if with_replay and _is_for_evaluating(content):
                damages.append(f"{path} is for evaluating: a run goes on from it only if it is named itself")
                continue
            progress = _progress(content, path)
            found.append(((path.name == LAST_NAME, path.name == PREVIOUS_NAME, *progress), path))
        except UserError as error:
            damages.append(str(error))
    for _, path in sorted(found, reverse=True):
        damage = damage_of(path) if with_replay else None
        if damage is None:
            return path, damages
        damages.append(f"{path} needs what is lost: {damage}")
    return None, damages


def find_checkpoint(name: str, with_replay: bool = True, option: str = "--ckpt_path") -> Path:
    """Return the path of an intact checkpoint; name on stderr the damaged ones that were passed over.

    Args:
        name: A checkpoint, or a directory, which stands for its newest intact checkpoint.
        with_replay: As for `damage_of`.
        option: The option that gave the name, for messages.

    Raises:
        UserError: If there is none, or the named one is damaged; the message names those beside it.
    """
    path = Path(name)
    if os.path.isdir(name):  # unlike a Path, it takes any string
        checkpoint, damages = newest_intact(path, with_replay)
        if checkpoint is not None:
            for damage in damages:
                print(f"lit_gfs: passed over: {damage}", file=sys.stderr)
            return checkpoint
        because = f": {'; '.join(damages)}" if damages else ""
        raise UserError(f"{option} {name!r} holds no intact checkpoint{because}")
    directory_of(name, option)
    if lost := damage_of(path, with_replay):
        other, _ = newest_intact(path.parent, with_replay)
        instead = "" if other is None else f"; the newest intact one beside it is {str(other)!r}"
        raise UserError(f"{option} {name!r} is no checkpoint, or a damaged one: {lost}{instead}")
    return path


def is_misfit(error: BaseException) -> bool:
    """Return whether an error came up while Lightning restored the content of a checkpoint.

    The file itself is then intact, but belongs to another model, or to another version of it.
    """
    return any(
        frame.f_code.co_filename == checkpoint_connector.__file__
        and frame.f_code.co_name.lstrip("_").startswith("restore")
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def reason_of(error: BaseException) -> str:
    """Return the first line of an error that gives the reason."""
    # PyTorch begins with a headline, and then lists the mismatches.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in") else (lines or [""])[0]
    return said if isinstance(error, RuntimeError) else f"{type(error).__name__}: {said}"


def _read(checkpoint: Path, with_replay: bool) -> dict[str, Any]:
    """Return a checkpoint's content.

    Raises:
        UserError: If the checkpoint or one of its replay shards is damaged.
    """
    content = read_checksummed(checkpoint)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{checkpoint} holds something else than a checkpoint")
    for name, kind in _KINDS.items():
        if not isinstance(content.get(name, kind()), kind):
            raise UserError(
                f"{checkpoint} holds something else than a checkpoint: {name} is no {kind.__name__}"
            )
    if with_replay:
        if missing := _TO_GO_ON - content.keys():
            raise UserError(f"{checkpoint} holds weights only: it lacks {' and '.join(sorted(missing))}")
        for state in content.values():
            manifests = state.get("replay", []) if isinstance(state, dict) else []
            if not isinstance(manifests, list):
                raise UserError(f"{checkpoint} lists no replay memories where it should")
            for rank, manifest in enumerate(manifests):
                ReplayShards(find_replay(checkpoint, rank)).require_intact(manifest)
    return content


def _is_for_evaluating(content: dict[str, Any]) -> bool:
    return any(isinstance(state, dict) and "is_for_evaluating" in state for state in content.values())


def _progress(content: dict[str, Any], path: Path) -> tuple[int, int, int]:
    """Return a checkpoint's environment steps, optimizer steps, and time of writing."""
    states = [state for state in content.values() if isinstance(state, dict)]
    env_steps = [state["env_steps"] for state in states if isinstance(state.get("env_steps"), int)]
    global_step = content.get("global_step")
    return (
        max(env_steps, default=0),
        global_step if isinstance(global_step, int) else 0,
        path.stat().st_mtime_ns,
    )
