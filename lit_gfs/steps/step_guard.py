"""Functions to skip an optimizer step, and to unscale the gradients of mixed precision before it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer


def require_whole_gradients(trainer: Trainer, callback: str, what: str = "gradients") -> None:
    """Reject strategies that shard gradients or weights over the ranks.

    Args:
        trainer: The Trainer.
        callback: Name of the callback that needs them whole.
        what: What it needs, for the message.

    Raises:
        MisconfigurationException: If the Trainer has such a strategy; the message begins with the callback's
            name.
    """
    if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
        raise MisconfigurationException(
            f"{callback} needs whole {what} on each rank, but {type(trainer.strategy).__name__} shards "
            "them; expected ddp"
        )


def loss_scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    """Return the loss scaler of 16-bit mixed precision, if any; it skips overflowing steps itself."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def unscale_gradients(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Divide the gradients of an optimizer by the loss scale, unless Lightning already has.

    Lightning does not unscale gradients for optimizers that do so within their step, such as fused ones.
    Norms read in ``on_before_optimizer_step`` would then include the loss scale.

    Returns:
        Whether an optimizer step follows. After a ``training_step`` that returned ``None``, Lightning calls
        its hooks, but neither the loss scaler nor the optimizer, so the loss scaler must not be touched.
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
    """Skip the next step of an optimizer if a flag is set.

    - On the CPU, the flag is read and the gradients are dropped. Parameters and optimizer state do not
      change, nor do the counters of Kron.
    - On another device, the flag is not read, because that would synchronize with the device. Fused
      optimizers skip the step on the device. Other optimizers take the step with zero gradients, so momentum
      and weight decay still change the parameters.
    - A loss scaler that has unscaled the gradients treats the flag as an overflow, and skips the step exactly
      on any device.

    Args:
        optimizer: The optimizer that is about to step.
        flag: Whether to skip, boolean ``()``, on the gradients' device.
        scaler: The loss scaler of 16-bit mixed precision, if there is one.
    """
    if scaler is not None:
        for found in scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values():
            # The maximum, because fused optimizers skip at a value of 1 and not at 2.
            torch.maximum(found, flag.to(found), out=found)
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if flag.device.type == "cpu":
        if flag:
            for parameter in parameters:
                parameter.grad = None
    elif can_skip_exactly(optimizer, flag.device):
        # A loss scaler sets these attributes after an overflow; `forget_skip` removes them.
        vars(optimizer).update(found_inf=flag.float(), grad_scale=None)
    else:
        # No multiplication turns NaN into 0, and PyTorch fills many tensors by a kernel for each.
        for parameter in parameters:
            if parameter.grad is not None:
                values = parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
                values.masked_fill_(flag, 0)


def can_skip_exactly(optimizer: Optimizer, device: torch.device) -> bool:
    """Return whether `skip_step_where` leaves parameters on this device exactly unchanged."""
    # Fused optimizers also mark themselves on construction, but agents choose the kernel afterwards.
    return device.type == "cpu" or all(group.get("fused") for group in optimizer.param_groups)


def forget_skip(optimizer: Optimizer) -> None:
    """Remove the attributes that `skip_step_where` set on an optimizer."""
    for name in ("found_inf", "grad_scale"):
        vars(optimizer).pop(name, None)
