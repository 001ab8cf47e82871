"""The policy that collectors call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor


class Policy(TensorDictModuleBase):
    """Turns a function of observations into a policy that a TorchRL collector can call.

    The function's networks are deliberately not registered as submodules: collector and agent live in one
    process and share their weights, so there is nothing to copy.

    Args:
        act: Maps observations ``(num_envs, *shape)`` to outputs ``(num_envs, ...)`` by name; ``action`` is
            one of them.
        out_keys: The names of the outputs.
    """

    def __init__(self, act: Callable[[Tensor], Mapping[str, Tensor]], out_keys: Iterable[str]) -> None:
        super().__init__()
        self.in_keys = ["observation"]
        self.out_keys = list(out_keys)
        self.act = act

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the outputs for ``observation`` into the tensordict."""
        for key, value in self.act(tensordict.get("observation")).items():
            tensordict.set(key, value)
        return tensordict
