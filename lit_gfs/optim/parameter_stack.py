"""One step of Kron for all parameters of one shape, whose state lies in one tensor each."""

from __future__ import annotations

from operator import is_
from typing import Any

import torch
from torch import Tensor

from lit_gfs.optim import kronecker

LARGEST_RMS = 1.1
"""Root mean square down to which the preconditioned momentum of a parameter is scaled."""


def initial_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter's state before its first gradient: ``momentum_buffer`` and the factors ``Q``."""
    return {
        "momentum_buffer": torch.zeros_like(parameter, dtype=group["mu_dtype"]),
        "Q": kronecker.identity_factors(
            parameter,
            scale=group["precondition_init_scale"],
            max_size_triangular=group["max_size_triangular"],
            min_ndim_triangular=group["min_ndim_triangular"],
            memory_save_mode=group["memory_save_mode"],
            dtype=group["precondition_dtype"],
        ),
    }


def stack_key(parameter: Tensor, state: dict[str, Any]) -> tuple[Any, ...]:
    """Return what the parameters of one stack have in common."""
    factors = tuple((factor.shape, factor.dtype) for factor in state["Q"])
    return parameter.shape, parameter.dtype, parameter.device, state["momentum_buffer"].dtype, factors


class ParameterStack:
    """Parameters of one group that share `stack_key`: a row for each in every tensor of their state.

    The stack owns the memory, and the tensors in the parameters' states become views of its rows. So one
    operation serves all parameters, and the state of each can still be saved or replaced by itself. What
    is computed from the state is not saved.

    Args:
        group: The optimizer's parameter group, read in every step.
        states: The optimizer's states of the parameters, whose tensors are replaced by views.
    """

    def __init__(self, group: dict[str, Any], states: list[dict[str, Any]]) -> None:
        self.group = group
        self.states = states
        self.shape = states[0]["momentum_buffer"].shape
        # A scalar lies in a stack as a vector of one entry.
        self.momentum = torch.stack([torch.atleast_1d(state["momentum_buffer"]) for state in states])
        factors = zip(*(state["Q"] for state in states), strict=True)
        self.factors = [torch.stack([torch.atleast_1d(row) for row in rows]) for rows in factors]
        self.views: list[list[Tensor]] = []
        for row, state in enumerate(states):
            shapes = [factor.shape for factor in state["Q"]]
            state["momentum_buffer"] = self.momentum[row].view(self.shape)
            state["Q"] = [factor[row].view(shape) for factor, shape in zip(self.factors, shapes, strict=True)]
            self.views.append([state["momentum_buffer"], *state["Q"]])
        self._products: list[Tensor] = []
        self._versions: list[int] = []

    def owns(self, row: int, group: dict[str, Any], state: dict[str, Any]) -> bool:
        """Whether a parameter of this group with this state is still what the row holds."""
        return (
            group is self.group
            and state is self.states[row]
            and all(map(is_, self.views[row], [state["momentum_buffer"], *state["Q"]]))
        )

    def step(
        self, rows: list[int], parameters: list[Tensor], probes: list[Tensor] | None, balance: bool
    ) -> None:
        """Move parameters, each ``(*shape)``, by their gradients; other rows stay as they are.

        Args:
            rows: The rows of the parameters.
            parameters: The parameters; all have a gradient.
            probes: Standard normal draws ``(*shape)`` with which to update the factors, or ``None`` for no
                update in this step.
            balance: Whether an update evens out the norms of the factors.
        """
        group = self.group
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        weight_decay = group["weight_decay"] if len(self.shape) > 1 else 0.0
        if weight_decay and not group["weight_decouple"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=weight_decay))

        # Indexing by a list copies; all rows are taken as they lie.
        chosen = slice(None) if rows == list(range(len(self.states))) else rows
        momenta = [self.views[row][0] for row in rows]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients, alpha=1 - group["momentum"])
        momentum = self.momentum[chosen]
        correction = 1 - group["momentum"] ** group["step"]

        if probes is not None:
            of_momentum = group["momentum_into_precondition_update"]
            target = momentum / correction if of_momentum else torch.stack(gradients).view_as(momentum)
            self._fit(chosen, torch.stack(probes).view_as(momentum), target, balance)

        products = [product[chosen] for product in self.products]
        flat = kronecker.multiply(products, momentum.to(products[0].dtype)).flatten(1)
        rms = torch.linalg.vector_norm(flat, dim=1, keepdim=True) / (correction * flat.shape[1] ** 0.5)
        flat.mul_((LARGEST_RMS / (rms + 1e-6)).clamp_(max=1).div_(correction))
        updates = flat.view(-1, *self.shape).to(parameters[0].dtype).unbind()
        if weight_decay and group["weight_decouple"]:
            torch._foreach_add_(updates, parameters, alpha=weight_decay)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    @property
    def products(self) -> list[Tensor]:
        """Q' Q of every factor, computed anew only after a factor was written to."""
        versions = [factor._version for factor in self.factors]
        if versions != self._versions:
            self._products, self._versions = kronecker.squared(self.factors), versions
        return self._products

    def _fit(self, chosen: slice | list[int], probes: Tensor, target: Tensor, balance: bool) -> None:
        factors = [factor[chosen] for factor in self.factors]
        if balance:
            kronecker.balance_(factors)
        kronecker.fit_(factors, probes, target.to(factors[0].dtype), self.group["precondition_lr"])
        if isinstance(chosen, list):
            for factor, fitted in zip(self.factors, factors, strict=True):
                factor[chosen] = fitted
