"""Returns freed memory to the system from time to time, so that a long run does not grow."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_gfs.utils.memory import release_freed_memory


class ReleaseFreedMemory(Callback):
    """Returns freed memory to the system after each evaluation.

    An evaluation and a checkpoint leave small blocks between large free ones, which then no longer fit later
    requests. With `lit_gfs.utils.memory.keep_freed_memory` alone, a long run needs more and more memory.
    """

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        release_freed_memory()
