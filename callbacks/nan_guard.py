"""A guard against steps that are not finite: they are skipped, counted and named, and a lost run is ended."""

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
from lit_gfs.gradients.skipped_steps import SkippedSteps, listed, nonfinite_weights
from lit_gfs.gradients.step_guard import forget_skip, require_whole_gradients
from lit_gfs.gradients.step_skipper import MOST_UNREAD, StepSkipper
from lit_gfs.gradients.step_witness import StepWitness
from lit_gfs.metrics.module_protocol import is_log_step, unit_of, write_scalars, x_axis


class NaNGuard(Callback):
    """Skips optimizer steps whose loss or gradient is not finite, and ends a run that has only such steps.

    A skipped step changes neither parameters nor optimizer state. The first, the tenth, the hundredth ... is
    reported with the layers concerned. After ``patience`` skipped steps in a row the run ends with
    `lit_gfs.errors.TrainingDiverged`; its weights are those from before the first of them. It also ends,
    at once, if the weights themselves are found not to be finite: such weights are never written to a
    checkpoint, so that the ones from before stay.

    It comes before all callbacks that change gradients. On the CPU every step is read. On another device
    nothing waits for it: the step is skipped there, and read up to 50 steps later or on the next log step,
    with the report, the end of the run and what a checkpoint counts. A fused optimizer skips exactly; another
    one on such a device takes the step with a gradient of zero, and moves by what momentum remains and weight
    decay. Under 16-bit mixed precision the loss scaler skips steps, as long as its scale is above 1 as a part
    of its work: these are not counted, unless the loss is not finite.

    It writes ``nan_guard/skipped_steps``, ``nan_guard/nonfinite_losses`` (how many of them had such a loss)
    and ``nan_guard/skipped_in_a_row`` every ``Trainer(log_every_n_steps)`` steps.

    Args:
        patience: Skipped optimizer steps in a row after which the run ends. The default is more than any
            shipped configuration takes from one rollout, so that a single bad rollout ends no run.

    Raises:
        UserError: If an argument is out of range, or weights are not finite before the first step.
        TrainingDiverged: As told above.
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
        """What was skipped, as far as it has been read from the device."""
        return self._skipper.skips

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            require_whole_gradients(trainer, type(self).__name__)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_restored and trainer.global_step == 0:  # else the same Trainer fits on
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
        # Accumulated gradients, or those of several backward passes, belong to one step.
        self._skipper.losses.append(loss.detach())

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._witness.see()
        total = self.skips.total
        if self._skipper.before_step(trainer, pl_module, optimizer):
            # Clipping by value takes it for an error that no gradient is left.
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
        # Before the next rollout is acted out with them.
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
        # The state of callbacks was gathered before, and may have lacked what was read just now.
        checkpoint["callbacks"][self.state_key] = self.state_dict()
        if self._lost_weights:
            self._end_if_lost(trainer, pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._lost_weights or nonfinite_weights(pl_module):
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    callback.save_on_exception = False  # it would write over better weights

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
        """Count and report the steps since the last time."""
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
            # Who resumes with other settings has patience again.
            in_a_row, self.skips.in_a_row = self.skips.in_a_row, 0
            raise TrainingDiverged(
                f"training diverged: since {unit_of(pl_module)} {self.skips.began_at:,} no step was finite; "
                f"{in_a_row:,} in a row were skipped, the first for {self.skips.began_with}. The weights are "
                f"those from before. Try {_remedies(self.skips.began_with_loss)}"
            )


def _remedies(loss: bool) -> str:
    if loss:
        return "rewards and observations that are finite and smaller, or a smaller learning rate"
    return "a smaller learning rate, and no root, logarithm or quotient near 0 in the loss"
