"""Describes a run in TensorBoard: its command, its hyperparameters, and the scores it has reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from lit_gfs.callbacks.progress import run_description
from lit_gfs.metrics.module_protocol import score_tag, trained_parameters, x_axis
from lit_gfs.utils.seeding import run_seed

LAST, BEST = "score/last", "score/best"


class RunCard(Callback):
    """Writes a text about the run, the row of TensorBoard's table of hyperparameters, and its scores.

    The text ``run`` is written when training starts. With each evaluation it writes ``score/last`` and
    ``score/best``: the module's score, such as the return, and the highest so far. They and the
    hyperparameters are the columns of the tab HPARAMS, from the first evaluation on. All runs have the same
    columns, because TensorBoard takes those of one run for all.

    Args:
        method: What stabilizes the run, such as ``gfs`` or ``baseline``; a column of the table.
        text: The text, in Markdown.

    Example::

        trainer = Trainer(callbacks=[RunCard("baseline", "The first try.")])
    """

    def __init__(self, method: str = "", text: str = "") -> None:
        self.method = method
        self.text = text
        self._best: float | None = None
        self._has_hyperparameters = False
        self._trainer: Trainer | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer, self._has_hyperparameters = trainer, False

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if self.text and isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("run", self.text, x_axis(trainer, pl_module))

    def on_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the scores of an evaluation, which is among the scalars that are being written."""
        trainer = self._trainer
        if trainer is None or (score := scalars.get(score_tag(trainer.lightning_module))) is None:
            return
        self._best = score if self._best is None else max(self._best, score)
        scores = {LAST: score, BEST: self._best}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and not self._has_hyperparameters:
                logger.log_hyperparams(hyperparameters(trainer, self.method), scores, step)
            else:
                logger.log_metrics(scores, step)
        self._has_hyperparameters = True

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Not a `state_dict`: Lightning would warn of it whenever the checkpoint is only evaluated.
        checkpoint.setdefault("learner", {})["best_score"] = self._best

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._best = checkpoint.get("learner", {}).get("best_score")


def hyperparameters(trainer: Trainer, method: str) -> dict[str, Any]:
    """Return what tells runs apart, the same keys for all runs; a text is empty where a run has no such part.

    Args:
        trainer: The Trainer, with a module and optimizers.
        method: What stabilizes the run.
    """
    module, datamodule = trainer.lightning_module, getattr(trainer, "datamodule", None)
    trunk, optimizers = getattr(module, "trunk", None), trainer.optimizers
    trained = [parameter for optimizer in optimizers for parameter in trained_parameters(optimizer)]
    return {
        "task": run_description(trainer),
        "method": method,
        "seed": getattr(datamodule, "seed", run_seed()),
        "trunk": "" if trunk is None else type(trunk).__name__,
        "depth": getattr(trunk, "depth", ""),
        "width": getattr(trunk, "width", ""),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "optimizer": "+".join(type(optimizer).__name__ for optimizer in optimizers),
        "learning_rate": optimizers[0].defaults.get("lr", "") if optimizers else "",
        "total_steps": getattr(datamodule, "total_steps", ""),
    }
