"""A callback that measures some rollouts of a fit, in each of its processes, and ends it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class RolloutClock(Callback):
    """Writes the environment steps, the seconds and the processor seconds of some rollouts as JSON.

    Args:
        directory: Where each process writes ``<rank>.json``.
        rollouts: Rollouts to measure.
        warmup: Rollouts before, whose time does not count.
    """

    def __init__(self, directory: str, rollouts: int, warmup: int = 2) -> None:
        self.directory = Path(directory)
        self.rollouts = rollouts
        self.warmup = warmup
        self._begun: tuple[int, float, float] | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time; a Lightning epoch is a rollout."""
        finished = trainer.current_epoch + 1
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        now = data.env_steps, time.perf_counter(), time.process_time()
        if finished == self.warmup:
            self._begun = now
        elif finished == self.warmup + self.rollouts:
            assert self._begun is not None
            steps, seconds, cpu_seconds = (last - first for last, first in zip(now, self._begun, strict=True))
            measured = {"steps": steps, "seconds": seconds, "cpu_seconds": cpu_seconds}
            (self.directory / f"{trainer.global_rank}.json").write_text(json.dumps(measured))
            trainer.should_stop = True
