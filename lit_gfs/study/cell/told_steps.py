"""A callback that tells the study how far its run is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_gfs.callbacks.progress import count_steps
from lit_gfs.utils.lightning_overhead import drop_empty_hooks

SECONDS_BETWEEN = 1.0


class ToldSteps(Callback):
    """Tells the number of steps so far and in all, at the start of the training and once a second.

    Args:
        tell: Receives both numbers, as from `count_steps`.
    """

    def __init__(self, tell: Callable[[int, int | None], None]) -> None:
        super().__init__()
        self._tell = tell
        self._due = -math.inf
        drop_empty_hooks([self])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell_if_due(trainer)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._tell_if_due(trainer)

    def _tell_if_due(self, trainer: Trainer) -> None:
        if (now := time.monotonic()) >= self._due:
            self._tell(*count_steps(trainer))
            self._due = now + SECONDS_BETWEEN
