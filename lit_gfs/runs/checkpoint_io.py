"""Checkpoints on the disk: checksummed files, with one older generation of the latest one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lit_gfs.runs.layout import LAST_NAME, PREVIOUS_NAME
from lit_gfs.utils.atomic_files import PARTIAL, replacing
from lit_gfs.utils.checksummed_files import UnwritableFile, is_intact, read_checksummed, write_checksummed


class ChecksummedCheckpointIO(CheckpointIO):
    """Writes checkpoints as checksummed files, atomically, and checks every byte that it reads.

    Before a new ``last.ckpt`` replaces the old one, the old one becomes ``previous.ckpt``, unless it is
    damaged. So there is an intact checkpoint if a process is killed at any moment, or if one of the two files
    is damaged.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            UnwritableFile: If there is no room or no permission. The old file at ``path`` stays.
        """
        path = Path(path)
        if path.name == LAST_NAME and is_intact(path):
            previous = path.with_name(PREVIOUS_NAME)
            try:
                _keep_as(path, previous)
            except OSError as error:
                raise UnwritableFile(f"cannot write {previous}: {error.strerror or error}") from error
        write_checksummed(checkpoint, path)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint: plain data only, with all tensors on the CPU.

        Raises:
            DamagedFile: If the file is damaged.
        """
        return read_checksummed(Path(path))

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, if it exists and its name is that of a checkpoint.

        The path may come from the checkpoint that a run resumes from, so it cannot be trusted. Lightning only
        checks that it begins with the directory of the checkpoints, not where it leads.
        """
        path = Path(path)
        if path.suffix == ModelCheckpoint.FILE_EXTENSION and ".." not in path.parts:
            path.unlink(missing_ok=True)


def last_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback that writes a run's last checkpoint.

    If a configuration adds others, the command line's own callback comes after them.
    """
    checkpoints = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    return next((each for each in reversed(checkpoints) if each.monitor is None), None)


def _keep_as(path: Path, name: Path) -> None:
    """Give a file another name; if a file has that name, replace it atomically."""
    partial = name.with_name(name.name + PARTIAL)
    try:
        partial.unlink(missing_ok=True)
        os.link(path, partial)
        partial.replace(name)
    except OSError:
        # Some file systems have no hard links.
        with path.open("rb") as source, replacing(name) as copy:
            shutil.copyfileobj(source, copy)


SealedCheckpointIO = ChecksummedCheckpointIO
"""The former name, which programs import."""
