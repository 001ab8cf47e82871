"""Skipping of optimizer steps with non-finite losses or gradients, and the warnings about them."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_gfs.gradients.finiteness import all_finite, nonfinite_tensors
from lit_gfs.metrics.module_protocol import trained_parameters, unit_of, x_axis
from lit_gfs.steps.skipped_steps import SkippedSteps, Step, owners, source_of_skip
from lit_gfs.steps.step_guard import loss_scaler, skip_step_where, unscale_gradients

MOST_UNREAD = 50
"""Number of unread steps on a device other than the CPU after which the host should read their flags."""


class StepSkipper:
    """Skips and counts steps with a non-finite loss or gradient; warns at the first, the tenth, and so on.

    On the CPU the flags of a step are read immediately. On another device the step is skipped on the device
    without synchronization, and `read` reads the flags later. Under 16-bit mixed precision the loss scaler
    skips overflowing steps itself. Those are not counted while its scale is above 1, unless the loss is
    non-finite.

    Args:
        name: Name of the callback, for the warnings.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.skips = SkippedSteps()
        """Counts of the skipped steps that have been read from the device."""
        self.losses: list[Tensor] = []
        """Losses of the next step."""
        self.unread: list[Step] = []
        """Steps whose flags have not been read yet."""

    def forget(self) -> None:
        """Discard the losses of the next step and the unread steps."""
        self.losses, self.unread = [], []

    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> bool:
        """Skip the next step of an optimizer if its loss or a gradient is non-finite.

        Returns:
            Whether the gradients were dropped; that happens only on the CPU and without a loss scaler.
        """
        losses, self.losses = self.losses, []
        parameters = [p for p in trained_parameters(optimizer) if p.grad is not None]
        if not parameters or not unscale_gradients(trainer, optimizer):
            return False
        tensors = [*losses, *(_gradient(parameter) for parameter in parameters)]
        is_read = tensors[-1].device.type == "cpu"
        is_fine = is_read and all_finite(tensors)
        if is_fine and trainer.world_size == 1:
            self.skips.in_a_row = 0
            return False
        flags = torch.zeros(len(tensors), dtype=torch.bool) if is_fine else nonfinite_tensors(tensors)
        if trainer.world_size > 1:
            # All ranks have the same gradients, but different losses.
            bad_loss = flags[: len(losses)].any().float()
            bad_loss = trainer.strategy.reduce(bad_loss, reduce_op="sum") > 0
            flags = torch.cat([bad_loss.reshape(1), flags[len(losses) :]])
        scaler = loss_scaler(trainer)
        if scaler is not None:
            # While the loss scale is above 1, it may cause the overflow; the scaler then lowers it.
            assert scaler._scale is not None
            flags[-len(parameters) :] &= scaler._scale <= 1
        is_bad = flags.any()
        skip_step_where(optimizer, is_bad, scaler)
        self.unread.append(Step(x_axis(trainer, pl_module), parameters, flags))
        if not is_read:
            return False
        self.read(pl_module)
        return scaler is None and bool(is_bad)

    def read(self, pl_module: LightningModule) -> bool:
        """Read the flags of the unread steps, count the skipped ones, and warn about them.

        Returns:
            Whether the last of these steps was skipped; False if there were none.
        """
        if not self.unread:
            return False
        steps, self.unread = self.unread, []
        sizes = [len(step.flags) for step in steps]
        every_flag = torch.cat([step.flags for step in steps]).cpu()  # one transfer to the host for all steps
        report = None
        for step, flags in zip(steps, every_flag.split(sizes), strict=True):
            read = flags.tolist()
            bad_losses, bad_gradients = read[: -len(step.parameters)], read[-len(step.parameters) :]
            if not any(read):
                self.skips.in_a_row = 0
                continue
            bad = [p for p, flag in zip(step.parameters, bad_gradients, strict=True) if flag]
            source = source_of_skip(any(bad_losses), owners(pl_module, bad))
            self.skips.add(step.at, any(bad_losses), source)
            # Warn at 1, 10, 100, ... skipped steps. A failing run would otherwise print a line per step.
            if self.skips.total == 10 ** (len(str(self.skips.total)) - 1):
                report = f"the step at {unit_of(pl_module)} {step.at:,} is skipped, not finite: {source}"
        if report:
            rank_zero_warn(f"{self.name}: {report} ({self.skips.total:,} skipped so far)")
        return self.skips.in_a_row > 0


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
