"""A copy of a module's parameters at some earlier time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError


class ParameterSnapshot:
    """Copies of parameters, in memory that stays in place, so that CUDA graphs may read them.

    Args:
        parameters: The parameters by name; they are copied at once.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in parameters.items()}
        """The copies by name."""

    @torch.no_grad()
    def take(self) -> None:
        """Copy the parameters of now."""
        torch._foreach_copy_(list(self.values.values()), list[Tensor](self.parameters.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the copies by name."""
        return dict(self.values)

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take over saved copies.

        Raises:
            UserError: If they are of other parameters.
        """
        for name, value in self.values.items():
            saved = state_dict.get(name)
            if saved is None or saved.shape != value.shape:
                shape = None if saved is None else tuple(saved.shape)
                raise UserError(
                    f"{name} has the shape {tuple(value.shape)}, but {shape} in a snapshot of the "
                    "checkpoint; expected a checkpoint of the same network"
                )
            value.copy_(saved)
