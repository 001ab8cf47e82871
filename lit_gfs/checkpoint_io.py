"""How checkpoints get to the disk and back: sealed, and with one older generation of the latest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from typing_extensions import override

from lit_gfs.sealed import is_intact, read_sealed, write_sealed

LAST_NAME = "last.ckpt"
PREVIOUS_NAME = "previous.ckpt"
"""What was ``last.ckpt`` before."""


class SealedCheckpointIO(CheckpointIO):
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
            _link(path, path.with_name(PREVIOUS_NAME))
        write_sealed(checkpoint, path)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint: plain data only, with all tensors on the CPU.

        Raises:
            DamagedFile: If it is not as it was written.
        """
        return read_sealed(Path(path))

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)


def _link(path: Path, link: Path) -> None:
    """Give a file another name, which may be taken; there is a file of that name at any moment."""
    partial = link.with_name(f"{link.name}.partial")
    partial.unlink(missing_ok=True)
    os.link(path, partial)
    partial.replace(link)
