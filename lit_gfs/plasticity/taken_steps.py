"""Whether an optimizer has just taken a step, and how a change is undone where it has not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def has_gradients(parameters: Iterable[nn.Parameter]) -> bool:
    """Return whether any parameter has a gradient; an optimizer changes nothing without one.

    A guard that skips a step on the CPU drops the gradients, and so does a ``training_step`` without a loss.
    """
    return any(parameter.grad is not None for parameter in parameters)


def skip_flag(optimizer: Optimizer) -> Tensor | None:
    """Return the flag with which a fused optimizer skips its current step on the device.

    A loss scaler and the NaN guard set it. Call this within a hook of the step, because a loss scaler removes
    the flag after the step.

    Returns:
        1 if the step is skipped, else 0, as a float ``()`` on the device; ``None`` if there is no flag.
    """
    flag: Any = getattr(optimizer, "found_inf", None)
    # A loss scaler may add up the flags of several devices.
    return flag.reshape(()).clamp(max=1) if isinstance(flag, Tensor) else None


@contextmanager
def undone_where(flag: Tensor | None, weights: list[Tensor]) -> Iterator[None]:
    """Undo all changes of weights within this context if a flag is set, without reading it.

    Args:
        flag: 1 to undo, 0 to keep the changes, ``()`` on the device of the weights; ``None`` keeps them.
        weights: The weights; they must be finite.
    """
    if flag is None or not weights:
        yield
        return
    # Products with 0 and 1 and sums with 0 are exact, and three kernels serve all weights.
    former = torch._foreach_mul(weights, flag)
    yield
    torch._foreach_mul_(weights, 1 - flag)
    torch._foreach_add_(weights, former)
