"""Detection of fits whose optimizer steps are invisible to callbacks."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn


class StepWitness:
    """Warns at the end of a fit that trained on batches without a visible optimizer step.

    Lightning calls the callbacks' hooks only for its own optimizers, not for those from
    ``optimizers(use_pl_optimizer=False)``.

    Args:
        name: Name of the callback, for the warning.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._seen = False
        self._batches_before = 0

    def begin(self, trainer: Trainer) -> None:
        """Start at the beginning of a fit."""
        self._seen, self._batches_before = False, _batches(trainer)

    def see(self) -> None:
        """Register an optimizer step."""
        self._seen = True

    def end(self, trainer: Trainer) -> None:
        """Warn if the fit trained on batches without a registered step."""
        if self._seen or _batches(trainer) == self._batches_before:
            return
        rank_zero_warn(
            f"{self.name} saw no optimizer step and did nothing: Lightning tells of the steps of its own "
            "optimizers alone; expected self.optimizers(), without use_pl_optimizer=False"
        )


def _batches(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1
