"""The step of an environment in tensors by a CUDA graph: the host starts all of its kernels with one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils import _pytree as pytree

from lit_gfs.utils.cuda_graphs import CannotCapture, Graphed


class GraphedTransition:
    """Takes the place of a pure function of tensors, which it captures at the first call.

    If the function cannot be captured, it is called as before, after one line.

    Args:
        function: Maps tensors, nested in named tuples, to tensors, nested in tuples.
        device: The device of all tensors.
        name: What steps, for that line.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device, name: str) -> None:
        self._function = function
        self._name = name
        self._structure: pytree.TreeSpec | None = None
        self._graphed: Graphed[list[Tensor]] | None = Graphed(self._leaves, device, tuple, train=False)

    @property
    def is_captured(self) -> bool:
        """Whether there was a call, and a graph can repeat it."""
        return self._graphed is not None and self._structure is not None

    def _leaves(self, arguments: tuple[Any, ...]) -> list[Tensor]:
        leaves, self._structure = pytree.tree_flatten(self._function(*arguments))
        return leaves

    def __call__(self, *arguments: Any) -> Any:
        """Return new tensors, as the function does."""
        if self._graphed is not None:
            try:
                leaves = self._graphed(arguments)
            except CannotCapture as error:
                rank_zero_warn(f"{self._name} steps without CUDA graphs: {error}")
                self._graphed = None
            else:
                assert self._structure is not None
                # Copies, because the next call overwrites the leaves.
                return pytree.tree_unflatten([leaf.clone() for leaf in leaves], self._structure)
        return self._function(*arguments)
