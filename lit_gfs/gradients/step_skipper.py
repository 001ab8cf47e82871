"""Skips optimizer steps that are not finite, and keeps account of them."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_gfs.gradients.finiteness import all_finite, nonfinite_tensors
from lit_gfs.gradients.skipped_steps import SkippedSteps, Step, owners, source_of_skip
from lit_gfs.gradients.step_guard import loss_scaler, skip_step_where, unscale_gradients
from lit_gfs.metrics.module_protocol import trained_parameters, unit_of, x_axis

MOST_UNREAD = 50
"""Steps on a device other than the CPU after which the host should read how they went."""


class StepSkipper:
    """Skips steps whose loss or gradient is not finite, counts them, and warns of the first, the tenth ...

    On the CPU every step is read at once. On another device the step is skipped there, and read when `read`
    is called: nothing waits for it. Under 16-bit mixed precision the loss scaler skips steps by itself; those
    are not counted as long as its scale is above 1, unless the loss is not finite.

    Args:
        name: Whose warnings these are.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.skips = SkippedSteps()
        """What was skipped, as far as it has been read from the device."""
        self.losses: list[Tensor] = []
        """Those of the coming step."""
        self.unread: list[Step] = []

    def forget(self) -> None:
        """Forget what belongs to a step to come, or to one that was not read."""
        self.losses, self.unread = [], []

    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> bool:
        """Have the coming step of an optimizer change nothing if its loss or a gradient is not finite.

        Returns:
            Whether its gradients were dropped: on the CPU alone, and where no loss scaler skips.
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
        bad_loss, bad_gradients = flags[: len(losses)].any(), flags[len(losses) :]
        if trainer.world_size > 1:
            # Gradients are alike on all ranks, losses are not.
            bad_loss = trainer.strategy.reduce(bad_loss.float(), reduce_op="sum") > 0
        scaler = loss_scaler(trainer)
        if scaler is not None:
            # Above 1 an overflow may be the scale's doing; the scaler then lowers it.
            assert scaler._scale is not None
            bad_gradients = bad_gradients & (scaler._scale <= 1)
        is_bad = bad_loss | bad_gradients.any()
        skip_step_where(optimizer, is_bad, scaler)
        at = x_axis(trainer, pl_module)
        self.unread.append(Step(at, parameters, torch.cat([bad_loss.reshape(1), bad_gradients])))
        if not is_read:
            return False
        self.read(pl_module)
        return scaler is None and bool(is_bad)

    def read(self, pl_module: LightningModule) -> bool:
        """Count and report the steps since the last time.

        Returns:
            Whether the last one that has been read was skipped, and there were any to read.
        """
        if not self.unread:
            return False
        steps, self.unread = self.unread, []
        sizes = [len(step.flags) for step in steps]
        every_flag = torch.cat([step.flags for step in steps]).cpu()  # the only transfer to the host
        report = None
        for step, flags in zip(steps, every_flag.split(sizes), strict=True):
            bad_loss, *bad_gradients = flags.tolist()
            if not (bad_loss or any(bad_gradients)):
                self.skips.in_a_row = 0
                continue
            bad = [p for p, flag in zip(step.parameters, bad_gradients, strict=True) if flag]
            source = source_of_skip(bad_loss, owners(pl_module, bad))
            self.skips.add(step.at, bad_loss, source)
            # The first, the tenth, the hundredth ... or every step of a run that is lost would be a line.
            if self.skips.total == 10 ** (len(str(self.skips.total)) - 1):
                report = f"the step at {unit_of(pl_module)} {step.at:,} is skipped, not finite: {source}"
        if report:
            rank_zero_warn(f"{self.name}: {report} ({self.skips.total:,} skipped so far)")
        return self.skips.in_a_row > 0


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
