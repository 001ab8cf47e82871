"""The callback that makes a resumed run repeat the uninterrupted one."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_gfs.runs.loop_states import complete_loop_states, forget_begun_evaluation, note_written_checkpoints
from lit_gfs.runs.resume_checks import optimizer_names, require_same_optimizers


class ExactResume(Callback):
    """Completes what Lightning's checkpoints say of its loops, and checks that the optimizers still fit.

    A checkpoint also holds the scores of the last evaluation: callbacks may ask for them before the next one.

    Raises:
        UserError: When fitting starts, if the checkpoint is of another optimizer.
    """

    def __init__(self) -> None:
        self._reported: dict[str, float] = {}
        """The scores of the last evaluation."""
        self._saved_optimizers: list[str] | None = None
        """The classes of the checkpoint's optimizer states."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Weights that were loaded by themselves may be trained with any optimizer.
        if trainer.ckpt_path is not None:
            require_same_optimizers(trainer.optimizers, self._saved_optimizers)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        forget_begun_evaluation(trainer)
        for tag, value in self._reported.items():
            trainer.callback_metrics.setdefault(tag, torch.tensor(value))
        note_written_checkpoints(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        metrics = trainer.callback_metrics
        prefixes = ("eval/", "eval_current/")
        checkpoint.setdefault("learner", {}).update(
            {
                "optimizers": optimizer_names(trainer.optimizers),
                "reported": {tag: float(value) for tag, value in metrics.items() if tag.startswith(prefixes)},
            }
        )
        complete_loop_states(trainer, checkpoint["loops"])

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        saved = checkpoint.get("learner", {})
        self._reported = saved.get("reported", {})
        self._saved_optimizers = saved.get("optimizers")
