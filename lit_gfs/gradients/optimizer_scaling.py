"""Layer-wise scaling of the gradients of one optimizer, with statistics of the factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_gfs.gradients import LayerwiseScaling


class OptimizerScaling:
    """A gradient algorithm for the layers of one optimizer, and the sums of its factors for logging.

    Args:
        algorithm: The algorithm, with its state.
    """

    def __init__(self, algorithm: LayerwiseScaling) -> None:
        self.algorithm = algorithm
        self.parameters: dict[str, list[nn.Parameter]] = {}
        """The optimizer's parameters by layer."""
        self.trained: list[int] = []
        """The ids of all parameters that the optimizer trains."""
        self.steps = 0
        """Number of steps in `totals`."""
        self.totals = torch.zeros(2, 0)
        """Sums over steps ``(2, L)``: the factors, and how often each of L gradients was shortened."""

    @property
    def has_gradients(self) -> bool:
        """Whether any parameter has a gradient."""
        return any(p.grad is not None for owned in self.parameters.values() for p in owned)

    def apply(self, parameters: Mapping[str, list[nn.Parameter]]) -> None:
        """Scale the gradients of parameters, given by layer, in place."""
        gradients = {name: [_writable_gradient(p) for p in owned] for name, owned in parameters.items()}
        weights = (
            {name: [p.detach() for p in owned] for name, owned in parameters.items()}
            if self.algorithm.needs_weights
            else None
        )
        known = self.algorithm.layers
        done = self.algorithm.apply(gradients, weights)
        if self.totals.shape[1] != len(done.norms) or known != self.algorithm.layers:
            self.totals, self.steps = torch.zeros(2, len(done.norms), device=done.norms.device), 0
        self.totals = self.totals.to(done.norms.device)  # those of a checkpoint are on the CPU
        self.totals += torch.stack([row.to(self.totals) for row in (done.scales, done.scales < 1)])
        self.steps += 1

    def gathered(self) -> dict[str, Any]:
        """Return the sums since `forget`, for a checkpoint."""
        return {"steps": self.steps, "totals": self.totals.clone()}

    def load_gathered(self, gathered: Mapping[str, Any]) -> None:
        """Restore the sums of a checkpoint."""
        self.steps, self.totals = gathered["steps"], gathered["totals"]

    def forget(self) -> None:
        """Reset the sums to zero."""
        self.totals.zero_()
        self.steps = 0


def _writable_gradient(parameter: nn.Parameter) -> Tensor | None:
    """Return the dense gradient, or the values of a sparse one; in-place changes reach the parameter."""
    if parameter.grad is None:
        return None
    if parameter.grad.is_sparse:
        parameter.grad = parameter.grad.coalesce()
        return parameter.grad._values()
    return parameter.grad
