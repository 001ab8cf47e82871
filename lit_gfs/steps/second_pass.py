"""Further passes of a module's policy outside its training step, with its own or other parameters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call

from lit_gfs.metrics.module_protocol import policy_features
from lit_gfs.networks.example_run import evaluating


def policy_outputs(
    pl_module: LightningModule, observations: Tensor, parameters: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return the outputs of the module's ``policy_head``, ``(batch, n)`` in float32.

    Args:
        pl_module: A module with ``policy_head`` and ``policy_features``.
        observations: Observations ``(batch, *shape)``.
        parameters: Values of parameters by name, in the place of the module's own; ``None`` takes its own.
    """
    head: nn.Module = pl_module.policy_head  # type: ignore[assignment]
    return run_aside(
        pl_module, lambda states: head(policy_features(pl_module, states)), observations, parameters
    ).float()


def run_aside(
    pl_module: LightningModule,
    function: Callable[[Tensor], Tensor],
    observations: Tensor,
    parameters: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Call a function of the module in evaluation mode and uncompiled, so that it changes nothing.

    Args:
        pl_module: The module.
        function: Runs parts of the module.
        observations: The function's argument.
        parameters: Values of the module's parameters by name; others keep their own.
    """
    with evaluating(pl_module), uncompiled(pl_module):
        if parameters is None:
            return function(observations)
        values = {f"pl_module.{name}": value for name, value in parameters.items()}
        return functional_call(_Around(pl_module, function), values, (observations,))


def uncompiled(module: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which the networks of a module run uncompiled, and so call their hooks."""
    compiled = "torch._dynamo" in sys.modules and any(is_compiled(each) for each in module.modules())
    # The context imports PyTorch's compiler, which takes a second: only where there is something compiled.
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def is_compiled(module: nn.Module) -> bool:
    """Return whether ``torch.compile`` has compiled a module, by its method or as a function."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


class _Around(nn.Module):
    """Has a function of a module as its forward, because `functional_call` calls nothing else."""

    def __init__(self, pl_module: LightningModule, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pl_module = pl_module
        self.function = function

    def forward(self, observations: Tensor) -> Tensor:
        return self.function(observations)
