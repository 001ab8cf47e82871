"""Guard against non-finite losses, gradients and weights: skips such steps and ends diverged runs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lit_gfs.errors import TrainingDiverged, UserError, require_between
from lit_gfs.metrics.module_protocol import is_log_step, unit_of, write_scalars, x_axis
from lit_gfs.steps.skipped_steps import SkippedSteps, listed, nonfinite_weights
from lit_gfs.steps.step_guard import forget_skip, require_whole_gradients
from lit_gfs.steps.step_skipper import MOST_UNREAD, StepSkipper
from lit_gfs.steps.step_witness import StepWitness


class NaNGuard(Callback):
    """Skips optimizer steps with a non-finite loss or gradient, and ends a run with only such steps.

    A skipped step changes neither parameters nor optimizer state. A warning reports the layers of the first,
    the tenth, the hundredth, ... skipped step. After ``patience`` skipped steps in a row, the run ends with
    `lit_gfs.errors.TrainingDiverged`, and with the weights before the first of these steps. The run also ends
    as soon as non-finite weights are found. Such weights are never written to a checkpoint, so earlier
    checkpoints remain.

    Put it before all callbacks that change gradients. On the CPU, the flags of each step are read
    immediately. On another device, the step is skipped on the device without synchronization. The host reads
    the flags on the next log step, or after 50 steps. Until then, warnings, the end of the run and the counts
    in a checkpoint are delayed. On such a device, only fused optimizers skip a step exactly. Other optimizers
    take it with zero gradients, so momentum and weight decay still change the parameters. Under 16-bit mixed
    precision, the loss scaler skips overflowing steps. While its scale is above 1, these are not counted,
    unless the loss is not finite.

    It writes ``nan_guard/skipped_steps``, ``nan_guard/nonfinite_losses`` (skipped steps with a non-finite
    loss) and ``nan_guard/skipped_in_a_row`` every ``Trainer(log_every_n_steps)`` steps.

    Args:
        patience: Skipped optimizer steps in a row after which the run ends. The default exceeds the steps per
            rollout of all shipped configurations, so a single bad rollout does not end a run.

    Raises:
        UserError: If an argument is out of range, or weights are not finite before the first step.
        TrainingDiverged: After ``patience`` skipped steps in a row, or if weights are not finite.
        MisconfigurationException: If the strategy shards gradients.

    Example::

        trainer = Trainer(callbacks=[NaNGuard(), TemporalGradientClipping()])
    """

    def __init__(self, patience: int = 500) -> None:
        require_between(1, math.inf, patience=patience)
        self.patience = patience
        self._skipper = StepSkipper("nan_guard")
        self._witness = StepWitness(type(self).__name__)
        self._is_restored = False
        self._lost_weights: list[str] = []
        self._clip_value: int | float | None = None
        self._written_at = 0

    @property
    def skips(self) -> SkippedSteps:
        """Counts of the skipped steps that have been read from the device."""
        return self._skipper.skips

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            require_whole_gradients(trainer, type(self).__name__)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_restored and trainer.global_step == 0:  # else the same Trainer continues to fit
            self._skipper.skips = SkippedSteps()
        self._is_restored = False
        self._skipper.forget()
        self._lost_weights = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._written_at = trainer.global_step
        self._witness.begin(trainer)
        if names := nonfinite_weights(pl_module):
            source = f"checkpoint {str(trainer.ckpt_path)!r}" if trainer.ckpt_path else "initialization"
            raise UserError(
                f"the weights of {listed(names)} are not finite before the first step; "
                f"expected another {source}"
            )

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # One step may have several backward passes, as with accumulated gradients.
        self._skipper.losses.append(loss.detach())

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._witness.see()
        total = self.skips.total
        if self._skipper.before_step(trainer, pl_module, optimizer):
            # Lightning's clipping by value raises an error if no gradient is left.
            self._clip_value, trainer.gradient_clip_val = trainer.gradient_clip_val, None
        if self.skips.total > total:
            self._lost_weights = nonfinite_weights(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if self._clip_value is not None:
            trainer.gradient_clip_val, self._clip_value = self._clip_value, None
        if is_log_step(trainer, self._written_at):
            self._written_at = trainer.global_step
            self._write(trainer, pl_module)
        elif len(self._skipper.unread) >= MOST_UNREAD:
            self._read(pl_module)
        self._end_if_lost(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before the next rollout is collected with these weights.
        self._lost_weights = nonfinite_weights(pl_module)
        self._end_if_lost(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._write(trainer, pl_module)
        self._end_if_lost(trainer, pl_module)
        self._witness.end(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._read(pl_module)
        self._lost_weights = nonfinite_weights(pl_module)
        # Lightning collected the callbacks' states earlier, without the flags that were just read.
        checkpoint["callbacks"][self.state_key] = self.state_dict()
        if self._lost_weights:
            self._end_if_lost(trainer, pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._lost_weights or nonfinite_weights(pl_module):
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    callback.save_on_exception = False  # it would overwrite finite weights

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for optimizer in trainer.optimizers:
            forget_skip(optimizer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return asdict(self.skips)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._skipper.skips = SkippedSteps(**state_dict)
        self._is_restored = True

    # ----------------------------------------------------------------------------------------------------

    def _read(self, pl_module: LightningModule) -> None:
        """Read the unread steps, and check the weights if the last step was skipped."""
        if self._skipper.read(pl_module):
            self._lost_weights = nonfinite_weights(pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(pl_module)
        scalars = {
            "skipped_steps": self.skips.total,
            "nonfinite_losses": self.skips.nonfinite_losses,
            "skipped_in_a_row": self.skips.in_a_row,
        }
        tagged = {f"nan_guard/{tag}": float(value) for tag, value in scalars.items()}
        write_scalars(trainer, pl_module, tagged)

    def _end_if_lost(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._lost_weights:
            raise TrainingDiverged(
                f"training diverged: at {unit_of(pl_module)} {x_axis(trainer, pl_module):,} the weights of "
                f"{listed(self._lost_weights)} are not finite, after steps with finite gradients; earlier "
                "checkpoints are kept. Try a smaller learning rate, or a larger eps of the optimizer",
                weights_are_lost=True,
            )
        if self.skips.in_a_row >= self.patience:
            # A resumed run starts with full patience.
            in_a_row, self.skips.in_a_row = self.skips.in_a_row, 0
            raise TrainingDiverged(
                f"training diverged: since {unit_of(pl_module)} {self.skips.began_at:,} no step was finite; "
                f"{in_a_row:,} in a row were skipped, the first for {self.skips.began_with}. The weights are "
                f"those from before. Try {_remedies(self.skips.began_with_loss)}"
            )


def _remedies(is_loss: bool) -> str:
    if is_loss:
        return "rewards and observations that are finite and smaller, or a smaller learning rate"
    return "a smaller learning rate, and no root, logarithm or quotient near 0 in the loss"
