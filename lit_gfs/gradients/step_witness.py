"""Notices that a whole fit went by without one optimizer step that callbacks were told of."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn


class StepWitness:
    """Warns at the end of a fit in which batches were trained on, and no optimizer step was seen.

    Lightning tells callbacks of the steps of its own optimizers alone, not of those that ``optimizers(
    use_pl_optimizer=False)`` returns.

    Args:
        name: Whose warning it is.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._seen = False
        self._batches_before = 0

    def begin(self, trainer: Trainer) -> None:
        """Begin to watch a fit."""
        self._seen, self._batches_before = False, _batches(trainer)

    def see(self) -> None:
        """Note a step."""
        self._seen = True

    def end(self, trainer: Trainer) -> None:
        """Warn if no step was noted."""
        if self._seen or _batches(trainer) == self._batches_before:
            return
        rank_zero_warn(
            f"{self.name} saw no optimizer step and did nothing: Lightning tells of the steps of its own "
            "optimizers alone; expected self.optimizers(), without use_pl_optimizer=False"
        )


def _batches(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1
