"""Muon for hidden matrices and Adam for all other parameters, as one optimizer of PyTorch's two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Adam, Muon, Optimizer, RAdam
from torch.optim.optimizer import ParamsT

from lit_gfs.errors import UserError, nearest, require_between
from lit_gfs.networks.layers import LARGEST_HIDDEN_RATIO, SMALLEST_HIDDEN_SIDE, is_hidden_matrix

_OTHERS: dict[str, type[Adam] | type[RAdam]] = {"Adam": Adam, "RAdam": RAdam}


class MuonWithAdam(Optimizer):
    """Muon for hidden matrices, and Adam or RAdam for all other parameters, at one learning rate.

    Muon orthogonalizes the momentum of a matrix (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
    It is made for hidden layers; first layers, heads, convolutions, biases and normalizations get Adam. Both
    are PyTorch's own: ``torch.optim.Muon`` and ``torch.optim.Adam`` or ``RAdam``. By default the root mean
    square of Muon's update is 0.2 times the rate, about as large as Adam's (Liu et al. 2025, arXiv
    2502.16982), so a rate that suits Adam suits both.

    **Hidden matrices** are told by their shape, because an optimizer knows no layers: a parameter with two
    dimensions is one if it is square, or if both sides have at least ``smallest_side`` units and one is at
    most four times as long as the other. So every ``width x width`` layer of a trunk is hidden. A layer that
    reads a convolution's flattened image usually is not, because it has far more inputs than units. A first
    layer counts as hidden where its inputs are as many as that.

    Each parameter group of ``params`` becomes up to two groups, first those of Muon. Schedulers change the
    rate of all groups. On a GPU, the NaN guard skips steps of Muon with zero gradients, as it does for all
    optimizers that are not fused; on a CPU it skips them exactly.

    Args:
        params: Parameters, or parameter groups, which may have a learning rate of their own.
        lr: Learning rate of both parts.
        weight_decay: Decoupled weight decay of both parts, as in AdamW.
        momentum: Decay of Muon's running mean of gradients.
        nesterov: Whether Muon looks ahead along its momentum.
        ns_steps: Steps of the Newton-Schulz iteration that orthogonalizes.
        adjust_lr_fn: ``match_rms_adamw`` multiplies Muon's rate by 0.2 sqrt(longer side); ``original`` by
            sqrt(rows / columns), at least 1.
        smallest_side: Units on both sides that make a matrix hidden that is not square.
        other: The optimizer of all other parameters.
        betas: Its decays of the running means of gradients and of squared gradients.
        eps: Its constant in the denominator.

    Raises:
        UserError: If there is no hidden matrix, or an argument is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        smallest_side: int = SMALLEST_HIDDEN_SIDE,
        other: Literal["Adam", "RAdam"] = "Adam",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        require_between(1, 99, ns_steps=ns_steps)
        require_between(0, 1, momentum=momentum)
        require_between(1, float("inf"), smallest_side=smallest_side)
        if other not in _OTHERS:
            raise UserError(
                f"MuonWithAdam has no other {other!r}; expected one of {', '.join(_OTHERS)}"
                f"{nearest(other, _OTHERS)}"
            )
        hidden, rest = _split(params, smallest_side)
        if not hidden:
            raise UserError(
                "MuonWithAdam found no hidden matrix; expected a square one, or one with at least "
                f"smallest_side = {smallest_side} units on both sides, at most {LARGEST_HIDDEN_RATIO} times "
                "as long as wide"
            )
        muon = Muon(
            hidden,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
        )
        self._parts: list[Optimizer] = [muon]
        if rest:
            options: dict[str, Any] = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
            self._parts.append(_OTHERS[other](rest, lr=lr, decoupled_weight_decay=True, **options))
        super().__init__([group for part in self._parts for group in part.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take a step with both parts.

        Args:
            closure: Computes the loss and the gradients, and returns the loss.

        Returns:
            The loss of the closure, if there is one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            # Groups and states are those of this optimizer: schedulers and load_state_dict replace or change
            # them here alone.
            is_muon = isinstance(part, Muon)
            part.param_groups = [group for group in self.param_groups if _is_of_muon(group) == is_muon]
            part.state = self.state
            part.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of one of the parts, as ``param_groups`` holds it.

        Raises:
            UserError: If it is a group of neither.
        """
        if not ({"ns_steps", "betas"} & param_group.keys()):
            raise UserError("MuonWithAdam got another parameter group; expected all of them when it is built")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, with parts of its own."""
        return {**super().__getstate__(), "_parts": self._parts}


def _split(params: ParamsT, smallest_side: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split parameter groups into those of hidden matrices and those of all other parameters."""
    entries: list[Any] = list(params)
    groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
    hidden: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for group in groups:
        members: Any = group["params"]
        parameters: list[Tensor] = [members] if isinstance(members, Tensor) else list(members)
        for chosen, part in ((True, hidden), (False, rest)):
            if owned := [p for p in parameters if _is_for_muon(p, smallest_side) == chosen]:
                part.append({**group, "params": owned})
    return hidden, rest


def _is_of_muon(group: dict[str, Any]) -> bool:
    return "ns_steps" in group


def _is_for_muon(parameter: Tensor, smallest_side: int) -> bool:
    # torch.optim.Muon takes nothing but matrices.
    return parameter.dim() == 2 and is_hidden_matrix(parameter, smallest_side)
