"""Keeping an optimizer from taking a step, and gradients readable before it does."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer


def require_whole_gradients(trainer: Trainer, callback: str) -> None:
    """Refuse strategies that leave each rank a part of the gradients.

    Raises:
        MisconfigurationException: If the Trainer has one; the message begins with the callback's name.
    """
    if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
        raise MisconfigurationException(
            f"{callback} needs whole gradients on each rank, but {type(trainer.strategy).__name__} shards "
            "them; expected ddp"
        )


def loss_scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    """Return the loss scaler of 16-bit mixed precision, which skips steps that overflow by itself."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def unscale_gradients(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Take the loss scale off the gradients of an optimizer, if that has not been done for the coming step.

    Lightning leaves it to optimizers that can do so within their step, such as fused ones; whoever reads
    norms in ``on_before_optimizer_step`` would see another scale at another time.

    Returns:
        Whether there is a step to come. After a ``training_step`` that returned ``None``, Lightning calls
        its hooks, but neither the loss scaler nor the optimizer; the scaler must then be left alone.
    """
    scaler = loss_scaler(trainer)
    if scaler is None:
        return True
    state: Any = scaler._per_optimizer_states[id(optimizer)]
    if state["stage"] is not OptState.READY:
        return True
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    if not getattr(optimizer, "_step_supports_amp_scaling", False) or all(p.grad is None for p in parameters):
        return False
    scaler.unscale_(optimizer)
    return True


def skip_step_where(optimizer: Optimizer, flag: Tensor, scaler: torch.amp.GradScaler | None = None) -> None:
    """Have the coming step of an optimizer change nothing if a flag is set.

    On the CPU the flag is read and the gradients are dropped: parameters stay as they are, and so does what
    the optimizer keeps for each of them, Kron's counters too. On another device
    nothing is read, as that would wait for it. Fused optimizers skip the step there. Others take it with a
    gradient of zero: parameters still move by what momentum remains, and weight decay. A loss scaler that has
    unscaled the gradients takes the flag for an overflow, and skips exactly on any device.

    Args:
        optimizer: The optimizer that is about to step.
        flag: Whether to skip, ``()`` of bool, on the gradients' device.
        scaler: The loss scaler of 16-bit mixed precision, if there is one.
    """
    if scaler is not None:
        for found in scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values():
            # Not a sum: fused optimizers skip at 1, not at 2.
            torch.maximum(found, flag.to(found), out=found)
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if flag.device.type == "cpu":
        if flag:
            for parameter in parameters:
                parameter.grad = None
    elif can_skip_exactly(optimizer, flag.device):
        # What a loss scaler sets after an overflow; `forget_skip` takes it away.
        vars(optimizer).update(found_inf=flag.float(), grad_scale=None)
    else:
        for parameter in parameters:
            if parameter.grad is not None:
                values = parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
                values.masked_fill_(flag, 0)


def can_skip_exactly(optimizer: Optimizer, device: torch.device) -> bool:
    """Whether `skip_step_where` leaves parameters on this device exactly as they are."""
    # Not the mark that fused optimizers set on themselves: agents choose the kernel afterwards.
    return device.type == "cpu" or all(group.get("fused") for group in optimizer.param_groups)


def forget_skip(optimizer: Optimizer) -> None:
    """Remove what `skip_step_where` left on an optimizer."""
    for name in ("found_inf", "grad_scale"):
        vars(optimizer).pop(name, None)
