"""How checkpoints get to the disk and back: sealed, and with one older generation of the latest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lit_gfs.utils.atomic_files import PARTIAL, replacing
from lit_gfs.utils.checksummed_files import UnwritableFile, is_intact, read_checksummed, write_checksummed

LAST_NAME = "last.ckpt"
PREVIOUS_NAME = "previous.ckpt"
"""What was ``last.ckpt`` before."""


class ChecksummedCheckpointIO(CheckpointIO):
    """Writes checkpoints as sealed files, whole or not at all, and checks every byte that it reads.

    Before ``last.ckpt`` is replaced it becomes ``previous.ckpt``, unless it is damaged: so whenever a process
    is killed, and if one of the two files is damaged, there is another one.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            UnwritableFile: If there is no room or no permission. What was at ``path`` is still there.
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
            DamagedFile: If it is not as it was written.
        """
        return read_checksummed(Path(path))

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, if it is there and is one.

        Which to remove is read from a checkpoint that a run is resumed from, and that may say anything:
        Lightning looks whether a path begins with the directory of the checkpoints, and not where it leads.
        """
        path = Path(path)
        if path.suffix == ModelCheckpoint.FILE_EXTENSION and ".." not in path.parts:
            path.unlink(missing_ok=True)


def last_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback that writes a run's last checkpoint, rather than its best.

    The command line's own come after those that a configuration adds.
    """
    checkpoints = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    return next((each for each in reversed(checkpoints) if each.monitor is None), None)


def _keep_as(path: Path, name: Path) -> None:
    """Give a file another name, which may be taken; there is a file of that name at any moment."""
    partial = name.with_name(name.name + PARTIAL)
    try:
        partial.unlink(missing_ok=True)
        os.link(path, partial)
        partial.replace(name)
    except OSError:
        # Not every file system has hard links.
        with path.open("rb") as source, replacing(name) as copy:
            shutil.copyfileobj(source, copy)


SealedCheckpointIO = ChecksummedCheckpointIO
"""The former name, which programs import."""
