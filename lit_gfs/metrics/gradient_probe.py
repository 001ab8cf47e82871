"""Measurement of layer gradients before and after interventions, around the steps of an optimizer."""

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
from lit_gfs.metrics.unit_gradients import gradient_dormant_shares


def probes_for(
    optimizers: Sequence[Optimizer], layers: Mapping[str, nn.Module], tau: float
) -> list[GradientProbe]:
    """Build one probe for each optimizer.

    Args:
        optimizers: The optimizers of a run.
        layers: Layers by name.
        tau: As for `GradientProbe`.

    Returns:
        The probes. A layer with parameters in several optimizers belongs, as a whole, to the first of them.
    """
    held = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    owned = parameters_by_layer(layers, [parameter for parameters in held for parameter in parameters])
    probes = []
    for optimizer, parameters in zip(optimizers, held, strict=True):
        ids = {id(parameter) for parameter in parameters}
        names = [name for name, layer in owned.items() if any(id(parameter) in ids for parameter in layer)]
        probes.append(GradientProbe(optimizer, {name: owned.pop(name) for name in names}, tau))
    return probes


class GradientProbe:
    """Measures the gradients of one optimizer's L layers: norms, cosines, and units that hardly get any.

    Args:
        optimizer: The optimizer.
        parameters: The optimizer's parameters by layer name.
        tau: A unit is dormant if its gradient is at most this share of its layer's mean.
    """

    def __init__(self, optimizer: Optimizer, parameters: dict[str, list[nn.Parameter]], tau: float) -> None:
        self.optimizer = optimizer
        self.parameters = parameters
        self.tau = tau
        self.steps = 0
        """Number of observed steps."""
        self.is_due = True
        """Whether the next step is to be measured that trains all layers."""
        self.previous: LayerGradients | None = None
        """Copy of the raw gradients of the step before the next measured one."""
        self.raw: Tensor | None = None
        """Raw norms ``(L,)`` of the measured step, until `collect`."""
        self._applied: Tensor | None = None
        self._cosines: Tensor | None = None
        self._dormant: Tensor | None = None
        self._handle: RemovableHandle | None = None

    @property
    def units(self) -> list[int]:
        """The number of units of each layer; 0 for a layer without a weight."""
        return [sum(len(p) for p in owned if p.ndim >= 2) for owned in self.parameters.values()]

    def observe(self, every_n_steps: int, trains_all: bool = True) -> None:
        """Measure the gradients before each n-th step, and copy those of the step before it.

        Args:
            every_n_steps: Steps between two measurements.
            trains_all: Whether the step trains all layers; a measurement waits for such a step.
        """
        if not self.parameters:
            return
        self.is_due = self.is_due or self.steps % every_n_steps == 0
        if self.is_due and trains_all:
            self._measure()
            self.is_due = False
        self.steps += 1
        if self.is_due or self.steps % every_n_steps == 0:
            self.previous = _copied(gradients_by_layer(self.parameters))

    def collect(self) -> Tensor:
        """Return raw norms, applied norms, cosines and shares of dormant units, ``(4, L)``; reset them."""
        assert self.raw is not None
        assert self._cosines is not None
        assert self._dormant is not None
        # The hook may not have run: a wrapping optimizer may not call it, and an overflow skips a 16-bit
        # step.
        applied = self._applied if self._applied is not None else self._norms()
        rows = (applied, self._cosines, self._dormant)
        values = torch.stack([self.raw, *(row.to(self.raw) for row in rows)])
        if self._handle is not None:
            self._handle.remove()
        self.raw = self._applied = self._cosines = self._dormant = self._handle = None
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, whether a measurement waits, and the gradients for the next cosine."""
        previous = None if self.previous is None else {name: list(g) for name, g in self.previous.items()}
        return {"steps": self.steps, "is_due": self.is_due, "previous": previous}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state; gradients are discarded if the layers have changed."""
        self.steps, self.is_due = state["steps"], state["is_due"]
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
        self._dormant = gradient_dormant_shares(gradients, self.tau)
        if self.previous is None:
            self._cosines = torch.full_like(self.raw, torch.nan)
        else:
            self._cosines = layer_cosines(gradients, self.previous)
            self.previous = None
        # Measure the applied norms right after the step. Under manual optimization, a zero_grad or the
        # backward pass of another optimizer may follow before the end of the batch.
        if self._handle is None:
            self._handle = self.optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.raw is None or self._applied is not None:
            return
        self._applied = self._norms()

    def _norms(self) -> Tensor:
        return layer_norms(gradients_by_layer(self.parameters))


def _copied(gradients: LayerGradients) -> LayerGradients:
    """Return copies of gradients, made all at once."""
    copies = {
        name: [None if gradient is None else torch.empty_like(gradient) for gradient in layer]
        for name, layer in gradients.items()
    }
    if present := _present(gradients):
        torch._foreach_copy_(_present(copies), present)
    return copies


def _present(gradients: LayerGradients) -> list[Tensor]:
    return [gradient for layer in gradients.values() for gradient in layer if gradient is not None]
