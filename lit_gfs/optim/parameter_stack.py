"""The step of Kron for all parameters of the same shape at once, with their state in shared tensors."""

from __future__ import annotations

from operator import is_
from typing import Any

import torch
from torch import Tensor

from lit_gfs.optim import kronecker

LARGEST_RMS = 1.1
"""Largest root mean square of the preconditioned momentum of a parameter; larger ones are scaled down."""


def initial_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """Return the initial state of a parameter: ``momentum_buffer`` and the factors ``Q``."""
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
    """Return the shapes, dtypes and device that all parameters of a stack share."""
    factors = tuple((factor.shape, factor.dtype) for factor in state["Q"])
    return parameter.shape, parameter.dtype, parameter.device, state["momentum_buffer"].dtype, factors


class ParameterStack:
    """Stacked state of the parameters of one group with the same `stack_key`, one row per parameter.

    The stack owns the memory. The tensors in the parameters' states become views of its rows. So one
    operation updates all parameters, but the state of each can still be saved or replaced separately. The
    cached products are not saved.

    Args:
        group: The optimizer's parameter group; each step reads its options.
        states: The optimizer's states of the parameters; their tensors are replaced by views.
    """

    def __init__(self, group: dict[str, Any], states: list[dict[str, Any]]) -> None:
        self.group = group
        self.states = states
        self.shape = states[0]["momentum_buffer"].shape
        # A scalar is stored as a vector with one entry.
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
        """Return whether the row still stores this state of a parameter of this group."""
        return (
            group is self.group
            and state is self.states[row]
            and all(map(is_, self.views[row], [state["momentum_buffer"], *state["Q"]]))
        )

    def step(
        self, rows: list[int], parameters: list[Tensor], probes: list[Tensor] | None, balance: bool
    ) -> None:
        """Update parameters ``(*shape)`` by their gradients; other rows do not change.

        Args:
            rows: The rows of the parameters.
            parameters: The parameters; all have a gradient.
            probes: Standard normal draws ``(*shape)`` for an update of the factors, or ``None`` for no
                update.
            balance: Whether an update of the factors also balances their norms.
        """
        group = self.group
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        weight_decay = group["weight_decay"] if len(self.shape) > 1 else 0.0
        if weight_decay and not group["weight_decouple"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=weight_decay))

        # A slice avoids the copy that indexing by a list makes.
        selected = slice(None) if rows == list(range(len(self.states))) else rows
        # Momentum m <- beta m + (1 - beta) g, with the bias correction 1 - beta^t.
        momenta = [self.views[row][0] for row in rows]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients, alpha=1 - group["momentum"])
        momentum = self.momentum[selected]
        correction = 1 - group["momentum"] ** group["step"]

        # Fit the factors to the momentum or to the gradient.
        if probes is not None:
            uses_momentum = group["momentum_into_precondition_update"]
            target = momentum / correction if uses_momentum else torch.stack(gradients).view_as(momentum)
            self._fit(selected, torch.stack(probes).view_as(momentum), target, balance)

        # Precondition the momentum by P = Q' Q, correct its bias, and clip its root mean square.
        products = [product[selected] for product in self.products]
        flat = kronecker.multiply(products, momentum.to(products[0].dtype)).flatten(1)
        rms = torch.linalg.vector_norm(flat, dim=1, keepdim=True) / (correction * flat.shape[1] ** 0.5)
        flat.mul_((LARGEST_RMS / (rms + 1e-6)).clamp_(max=1).div_(correction))
        updates = flat.view(-1, *self.shape).to(parameters[0].dtype).unbind()
        if weight_decay and group["weight_decouple"]:
            torch._foreach_add_(updates, parameters, alpha=weight_decay)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    @property
    def products(self) -> list[Tensor]:
        """Q' Q of each factor, cached until a factor changes."""
        # The version counter of a tensor increases with each in-place operation.
        versions = [factor._version for factor in self.factors]
        if versions != self._versions:
            self._products, self._versions = kronecker.squared(self.factors), versions
        return self._products

    def _fit(self, selected: slice | list[int], probes: Tensor, target: Tensor, balance: bool) -> None:
        factors = [factor[selected] for factor in self.factors]
        if balance:
            kronecker.balance_(factors)
        kronecker.fit_(factors, probes, target.to(factors[0].dtype), self.group["precondition_lr"])
        if isinstance(selected, list):
            # Indexing by a list has made copies: write them back.
            for factor, fitted in zip(self.factors, factors, strict=True):
                factor[selected] = fitted
