"""How an optimizer is built from what a configuration names."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from lit_gfs.errors import UserError

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Builds an optimizer over parameters; in YAML any optimizer's ``class_path`` with ``init_args``."""


def make_optimizer(
    build: OptimizerFactory, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]
) -> Optimizer:
    """Build an optimizer, in the quickest of PyTorch's implementations unless the user picked one.

    Args:
        build: Builds it; its arguments are bound already.
        parameters: The parameters that it trains, or groups of them with options of their own.

    Raises:
        UserError: If the optimizer refuses its arguments, or is known not to resume.
    """
    try:
        optimizer = build(cast(Iterable[nn.Parameter], parameters))  # all optimizers take groups too
    except (TypeError, ValueError, RuntimeError) as error:
        # PyTorch's Muon takes matrices alone; pytorch_optimizer's look for marked groups in each parameter.
        if any(words in str(error) for words in ("Muon only supports 2D", "Tensor.__contains__")):
            raise UserError(
                "model.optimizer is for hidden matrices alone, or wants marked groups of parameters; "
                "expected lit_gfs.optim.MuonWithAdam, which trains the others with Adam"
            ) from error
        if isinstance(error, RuntimeError):
            raise
        raise UserError(f"model.optimizer: {error}") from error
    kind = type(optimizer)
    # By name: importing that library takes half a second, which most runs need not pay.
    if kind.__name__ == "Kron" and kind.__module__.startswith("pytorch_optimizer."):
        raise UserError(
            "model.optimizer is pytorch_optimizer.Kron, which draws differently in every process and "
            "after a resume; expected lit_gfs.optim.Kron"
        )
    _choose_implementation(optimizer)
    _step_without_profiling(optimizer)
    return optimizer


def _choose_implementation(optimizer: Optimizer) -> None:
    """Pick the quickest implementation of one of PyTorch's optimizers, unless the user picked one.

    The update is the same to rounding. On a CPU, PyTorch loops over tensors in Python unless told otherwise.
    An optimizer that has state already, as Adagrad, has made it for the implementation that it chose itself.
    """
    if optimizer.state:
        return
    for group in optimizer.param_groups:
        if group.get("differentiable") or group.get("foreach") is not None:
            continue
        if "fused" not in group and "foreach" in group:
            group["foreach"] = True
        elif group.get("fused", False) is None:
            group["fused"] = True


def _step_without_profiling(optimizer: Optimizer) -> None:
    """Let an optimizer step without the entry for PyTorch's profiler around it, while no profiler runs.

    With a small network that entry takes a sixth of the step. Hooks of the optimizer are called as ever.
    """
    usual = type(optimizer).step
    if not hasattr(usual, "hooked"):  # PyTorch's mark of its wrapper
        return
    bare = usual.__wrapped__  # type: ignore[attr-defined]

    @functools.wraps(usual)
    def step(self: Optimizer, *arguments: Any, **options: Any) -> Any:
        is_watched = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        )
        return (usual if is_watched else bare)(self, *arguments, **options)

    # A bound method, as schedules of the learning rate expect.
    optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]
