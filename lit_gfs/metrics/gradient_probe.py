"""Reads gradients around the steps of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lit_gfs.metrics.gradient_flow import (
    LayerGradients,
    gradients_by_layer,
    layer_cosines,
    layer_norms,
    parameters_by_layer,
)


def probes_for(optimizers: Sequence[Optimizer], layers: Mapping[str, nn.Module]) -> list[GradientProbe]:
    """Divide layers among optimizers, for measuring.

    Args:
        optimizers: The optimizers of a run.
        layers: Layers by name.

    Returns:
        One probe for each optimizer. A layer whose parameters are divided among several goes, whole, to the
        first of them.
    """
    held = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    owned = parameters_by_layer(layers, [parameter for parameters in held for parameter in parameters])
    probes = []
    for optimizer, parameters in zip(optimizers, held, strict=True):
        ids = {id(parameter) for parameter in parameters}
        mine = [name for name, layer in owned.items() if any(id(parameter) in ids for parameter in layer)]
        probes.append(GradientProbe(optimizer, {name: owned.pop(name) for name in mine}))
    return probes


class GradientProbe:
    """Measures the layers of one optimizer around its steps.

    Args:
        optimizer: The optimizer.
        parameters: Its parameters by layer name, L layers.
    """

    def __init__(self, optimizer: Optimizer, parameters: dict[str, list[nn.Parameter]]) -> None:
        self.optimizer = optimizer
        self.parameters = parameters
        self.steps = 0
        self.previous: LayerGradients | None = None
        self.raw: Tensor | None = None
        self._applied: Tensor | None = None
        self._cosines: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def observe(self, every_n_steps: int) -> None:
        """Count a step that is about to be taken; measure it, or keep its gradient, if that is due."""
        if not self.parameters:
            return
        if self.steps % every_n_steps == 0:
            self._measure()
        self.steps += 1
        if self.steps % every_n_steps == 0:
            self.previous = {
                name: [None if gradient is None else gradient.clone() for gradient in layer]
                for name, layer in gradients_by_layer(self.parameters).items()
            }

    def collect(self) -> Tensor:
        """Return raw norms, applied norms and cosines, ``(3, L)``, and forget them."""
        assert self.raw is not None
        assert self._cosines is not None
        # An optimizer that wraps another may never call its hooks, and an overflow skips a 16-bit step.
        applied = self._applied if self._applied is not None else self._norms()
        values = torch.stack([self.raw, applied.to(self.raw), self._cosines.to(self.raw)])
        if self._handle is not None:
            self._handle.remove()
        self.raw = self._applied = self._cosines = self._handle = None
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return the step count and the gradients kept for the next cosine."""
        previous = None if self.previous is None else {name: list(g) for name, g in self.previous.items()}
        return {"steps": self.steps, "previous": previous}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue; kept gradients of other layers than today's are dropped."""
        self.steps = state["steps"]
        previous = state["previous"]
        if previous is not None and list(previous) == list(self.parameters):
            self.previous = {
                name: [
                    None if gradient is None else gradient.to(parameter.device)
                    for gradient, parameter in zip(previous[name], owned, strict=True)
                ]
                for name, owned in self.parameters.items()
            }

    def _measure(self) -> None:
        gradients = gradients_by_layer(self.parameters)
        self.raw = layer_norms(gradients)
        self._applied = None
        if self.previous is None:
            self._cosines = torch.full_like(self.raw, torch.nan)
        else:
            self._cosines = layer_cosines(gradients, self.previous)
            self.previous = None
        # Right after the step, not at the end of the batch: under manual optimization another optimizer's
        # backward pass or a zero_grad may follow within the batch.
        if self._handle is None:
            self._handle = self.optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.raw is None or self._applied is not None:
            return
        self._applied = self._norms()

    def _norms(self) -> Tensor:
        return layer_norms(gradients_by_layer(self.parameters))
