"""The policy that collectors call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from lightning.pytorch.utilities import rank_zero_warn
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from lit_gfs.utils.cuda_graphs import CannotCapture, GraphedFunction


class Policy(TensorDictModuleBase):
    """Turns a function of observations into a policy that a TorchRL collector can call.

    The function's networks are deliberately not registered as submodules: collector and agent live in one
    process and share their weights, so there is nothing to copy.

    Args:
        act: Maps observations ``(num_envs, *shape)``, and settings by name, to outputs ``(num_envs, ...)`` by
            name; ``action`` is one of them.
        out_keys: The names of the outputs.
        settings: Returns numbers that change from step to step, such as epsilon. As part of a graph, ``act``
            gets them as tensors ``()``.
    """

    def __init__(
        self,
        act: Callable[..., Mapping[str, Tensor]],
        out_keys: Iterable[str],
        settings: Callable[[], dict[str, float]] = dict,
    ) -> None:
        super().__init__()
        self.in_keys = ["observation"]
        self.out_keys = list(out_keys)
        self.function = act
        self.settings = settings
        self._graphed: GraphedFunction | None = None

    def use_graphs(self, device: torch.device, state: Callable[[], Iterable[Tensor]]) -> None:
        """Act by CUDA graphs from now on, or go on without, with one line, if that is not possible.

        Args:
            device: The device of the networks.
            state: Lists their parameters and buffers.
        """

        def function(inputs: dict[str, Tensor]) -> Mapping[str, Tensor]:
            return self.function(**inputs)

        self._graphed = GraphedFunction(function, device, state)

    def act(self, observation: Tensor) -> Mapping[str, Tensor]:
        """Map observations ``(num_envs, *shape)`` to outputs ``(num_envs, ...)`` by name."""
        settings = self.settings()
        if self._graphed is not None:
            try:
                return self._graphed({"observation": observation, **settings})
            except CannotCapture as error:
                rank_zero_warn(f"the policy acts without CUDA graphs: {error}")
                self._graphed = None
        return self.function(observation, **settings)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the outputs for ``observation`` into the tensordict."""
        for key, value in self.act(tensordict.get("observation")).items():
            tensordict.set(key, value)
        return tensordict
