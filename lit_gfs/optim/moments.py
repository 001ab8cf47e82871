"""Resets of what an optimizer remembers of earlier gradients, for whole parameters and for parts of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adam, Adamax, AdamW, Muon, NAdam, Optimizer, RAdam, RMSprop

from lit_gfs.errors import UserError
from lit_gfs.optim.kron import Kron
from lit_gfs.optim.muon import MuonWithAdam

AdamReset = Literal["step", "moments"]
"""What `reset_adam_` resets: the step count alone, or the moments with it."""

ADAMS = (Adam, AdamW, RAdam, NAdam)
"""The optimizers of `reset_adam_`; all of them correct the bias of their moments by a step count."""

_MOMENTS = (
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"),
    *("momentum_buffer", "square_avg", "grad_avg", "acc_delta"),
)
"""Names of running means in the state of an optimizer; all start at 0 and have the parameter's shape."""

_KNOWN = (*ADAMS, Adamax, Adadelta, RMSprop, SGD, Muon, MuonWithAdam)
"""The optimizers whose whole memory consists of `_MOMENTS` and a step count."""


def kept_memory(optimizer: Optimizer) -> str:
    """Describe what `reset_moments_` cannot reset, for a message.

    Args:
        optimizer: Any optimizer.

    Returns:
        Words that follow "keeps", or an empty string if nothing is kept.
    """
    if isinstance(optimizer, _KNOWN):
        return ""
    if isinstance(optimizer, Kron):
        return "its preconditioners, whose entries belong to pairs of units"
    return "its whole memory, because its state is not known"


@torch.no_grad()
def reset_moments_(optimizer: Optimizer, entries: Mapping[nn.Parameter, Tensor]) -> None:
    """Set the moments of parts of parameters to 0; nothing is read from the device.

    The step count belongs to a whole parameter, so it stays. Adam then corrects no bias of the new moments:
    its first steps on these entries are up to ``(1 - beta1) / sqrt(1 - beta2)`` = 3.2 rates long.

    `lit_gfs.optim.Kron` keeps its preconditioners, and an optimizer of unknown state everything; see
    `kept_memory`.

    Args:
        optimizer: The optimizer.
        entries: By parameter, which entries to forget: boolean, of the parameter's shape. Parameters of other
            optimizers, and those that were not stepped yet, are ignored.
    """
    if not isinstance(optimizer, (*_KNOWN, Kron)):
        return
    for parameter, is_reset in entries.items():
        for moment in _moments(optimizer, parameter):
            moment.masked_fill_(is_reset, 0)


@torch.no_grad()
def forget_(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Bring the state of whole parameters back to where it was before the optimizer's first step.

    Tensors keep their place in memory, so fused and capturable optimizers work on. The state of an optimizer
    that is not known is deleted.

    `lit_gfs.optim.Kron` keeps its preconditioners. It counts steps for all parameters together, and late in a
    run it rarely updates its factors: from the identity they would need hundreds of steps.

    Args:
        optimizer: The optimizer.
        parameters: Parameters; those of other optimizers are ignored.
    """
    for parameter in parameters:
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        if not state:
            continue
        if not isinstance(optimizer, (*_KNOWN, Kron)):
            del optimizer.state[parameter]
            continue
        for moment in _moments(optimizer, parameter):
            moment.zero_()
        _restart_count(state)


def require_adam(optimizer: Optimizer, owner: str) -> None:
    """Check that an optimizer is Adam or a near relative.

    Raises:
        UserError: If it is not; the message begins with the owner's name.
    """
    if not isinstance(optimizer, ADAMS):
        expected = ", ".join(kind.__name__ for kind in ADAMS)
        raise UserError(
            f"{owner} resets the state of Adam, but the optimizer is {type(optimizer).__name__}; expected "
            f"one of {expected}"
        )


@torch.no_grad()
def reset_adam_(optimizer: Optimizer, mode: AdamReset = "step") -> None:
    """Reset the state of Adam or a near relative for all parameters; nothing is read from the device.

    - ``step``: the step count t becomes 0 and the moments stay (Adam-Rel, Ellis et al. 2024, arXiv
      2412.17113). The bias correction divides m by 1 - beta1^t and v by 1 - beta2^t, as in the first steps
      of a run. If the gradient then grows a hundredfold, no update is longer than 1.04 rates; without the
      reset, updates would reach 6.6 rates (betas of 0.9 and 0.999).
    - ``moments``: m, v and t become 0 (Asadi et al. 2023, arXiv 2306.17833).

    Args:
        optimizer: One of `ADAMS`.
        mode: What to reset.
    """
    for parameter, state in optimizer.state.items():
        if mode == "moments":
            for moment in _moments(optimizer, parameter):
                moment.zero_()
        _restart_count(state)


def _moments(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    return [state[name] for name in _MOMENTS if isinstance(state.get(name), Tensor)]


def _restart_count(state: dict[str, Any]) -> None:
    # NAdam also keeps the product of its momentum's schedule.
    for name, start in (("step", 0), ("mu_product", 1)):
        if isinstance(state.get(name), Tensor):
            state[name].fill_(start)
        elif name in state:
            state[name] = start
