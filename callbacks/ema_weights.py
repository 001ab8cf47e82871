"""An exponential moving average of the weights, evaluated beside the weights that are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

from lit_gfs.errors import UserError, require_between


class EMAWeights(EMAWeightAveraging):
    """Lightning's moving average of the weights, for modules with buffers and frozen copies of weights.

    After an optimizer step the average moves by ``1 - decay`` towards the weights. Validation evaluates the
    average, a checkpoint holds it in ``state_dict``, and the module has it when fitting has ended: what is
    evaluated is also what is saved. Training goes on with the weights themselves, ``current_model_state`` of
    the checkpoint. All of that is Lightning's; this class differs in these points:

    - Buffers (running statistics) and parameters that are not trained (a target network) are those of the
      module. Lightning averages them by default. Only these tensors are copied, not the module.
    - Before its first update the average is the weights, and not their state when fitting was set up.
    - A module with a method ``evaluate_current(batch)`` gets each validation batch once more, with the
      weights that are trained. Agents report that evaluation as ``eval_current/*``.
    - A checkpoint of an evaluation that was broken off, and of the end of a run, resumes exactly.
    - The average is updated for all tensors at once.

    Agents replace Lightning's ``EMAWeightAveraging`` by this class.

    Args:
        decay: Share of the average that an update keeps; 1 / (1 - decay) updates are averaged.
        update_every_n_steps: Optimizer steps between updates.
        update_starting_at_step: The first optimizer step, from 0, whose weights are averaged.
        update_starting_at_epoch: The first epoch, from 0, at whose end the weights are averaged too.

    Raises:
        UserError: If an argument is out of range.

    Example::

        trainer = Trainer(callbacks=[EMAWeights(decay=0.999)])
    """

    def __init__(
        self,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
    ) -> None:
        require_between(0, 1, decay=decay)
        require_between(1, float("inf"), update_every_n_steps=update_every_n_steps)
        super().__init__(
            use_buffers=False,
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
            update_starting_at_epoch=update_starting_at_epoch,
        )
        self.decay = decay
        self._is_swapped = False
        """Whether the module has the average, and the average's place holds the weights that are trained."""

    @classmethod
    def like(cls, other: EMAWeightAveraging) -> EMAWeights:
        """Return a callback with the options of Lightning's."""
        # Lightning keeps the decay only within its function, which keeps this share of 1.
        one = torch.ones((), dtype=torch.float64)
        decay = float(other._kwargs["avg_fn"](one, 0 * one, 1))
        return cls(
            decay,
            other.update_every_n_steps,
            other.update_starting_at_step,
            other.update_starting_at_epoch,
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._is_swapped = False
        if stage == "fit":
            pl_module.configure_model()
            # Lightning would copy the module as a whole, with factories that cannot be copied, and leave the
            # copy where the module is before the strategy moves it.
            try:
                modules, device = _modules_of(pl_module), trainer.strategy.root_device
                self._average_model = _Average(modules, device, self.decay)
            except RuntimeError as error:
                raise UserError(
                    f"EMAWeights cannot copy {type(pl_module).__name__}: {str(error).splitlines()[0]}; "
                    "expected weights that are parameters, or torch.nn.utils.parametrizations"
                ) from error

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        evaluate = getattr(pl_module, "evaluate_current", None)
        if self._is_swapped and callable(evaluate):
            self._swap_models(pl_module)
            evaluate(batch)
            self._swap_models(pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning would overwrite the weights that are trained, and a checkpoint may follow.
        self._swap_models(pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._is_swapped:
            self._swap_models(pl_module)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average_model is None:
            return  # outside of fitting the weights are saved as they are
        if not self._is_swapped:
            self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._is_swapped:
            average = checkpoint["current_model_state"]
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = average

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average_model is not None:  # else the average is evaluated, as the checkpoint has it
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @torch.no_grad()
    def take_over(self, pl_module: LightningModule, entries: Mapping[nn.Parameter, Tensor]) -> None:
        """Set entries of the average to the weights, after these entries have been reset.

        Args:
            pl_module: The module that is trained, with its weights.
            entries: By parameter, which entries were reset: boolean, of the parameter's shape.
        """
        if self._average_model is None:
            return
        for mean, weight in zip(self._average_model.module.parameters(), pl_module.parameters(), strict=True):
            if weight in entries:
                mean.copy_(torch.where(entries[weight], weight, mean))

    @override
    def _swap_models(self, pl_module: LightningModule) -> None:
        if not self._is_swapped:
            self._follow(pl_module)
        super()._swap_models(pl_module)
        self._is_swapped = not self._is_swapped

    @torch.no_grad()
    def _follow(self, pl_module: LightningModule) -> None:
        """Bring to the average everything that is not averaged, or all before its first update."""
        assert self._average_model is not None
        average = self._average_model.module
        is_begun = bool(self._average_model.n_averaged)
        for mean, weight in zip(average.parameters(), pl_module.parameters(), strict=True):
            if not (is_begun and weight.requires_grad):
                mean.copy_(weight)
        for copied, buffer in zip(average.buffers(), pl_module.buffers(), strict=True):
            copied.copy_(buffer)


class _Average(AveragedModel):
    """PyTorch's exponential average, without its waiting: it reads its count of updates from the device.

    Args:
        module: The module whose weights are averaged.
        device: Where the average is.
        decay: Share of the average that an update keeps.
    """

    def __init__(self, module: nn.Module, device: torch.device, decay: float) -> None:
        super().__init__(module, device)
        self.n_averaged = self.n_averaged.cpu()
        self.decay = decay

    @override
    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the weights of a module on the same device, or to them the first time."""
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(model.parameters())
        if any(average.dtype != weight.dtype for average, weight in zip(averages, weights, strict=True)):
            # The precision may cast a module after it was copied. Weights and averages change places.
            for average, weight in zip(averages, weights, strict=True):
                average.data = average.data.to(weight.dtype)
        if self.n_averaged == 0:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        for copied, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            copied.copy_(buffer)
        self.n_averaged += 1


def _modules_of(pl_module: LightningModule) -> nn.Module:
    """Return a module with the parameters, buffers and submodules of another, and nothing else."""
    tree = nn.Module()
    for name, parameter in pl_module.named_parameters(recurse=False):
        tree.register_parameter(name, parameter)
    for name, buffer in pl_module.named_buffers(recurse=False):
        is_saved = name not in pl_module._non_persistent_buffers_set
        tree.register_buffer(name, buffer, persistent=is_saved)
    for name, child in pl_module.named_children():
        tree.add_module(name, child)
    return tree
