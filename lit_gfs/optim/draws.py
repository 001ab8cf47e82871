"""The random numbers of Kron, from generators of their own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Draws:
    """The random numbers of one update of the factors.

    They are those that ``pytorch_optimizer.Kron`` would draw from the global generators of NumPy and PyTorch
    after both were seeded, and leave these alone.

    Args:
        seed: Decides all of them, together with their order.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def uniform(self) -> float:
        """Return a number in [0, 1), the same at each call."""
        return np.random.RandomState(self._seed).random_sample()

    def normal(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return new standard normal numbers.

        Args:
            like: Has the shape and the device of the result.
            dtype: Precision of the result.
        """
        if like.device not in self._generators:
            self._generators[like.device] = torch.Generator(like.device).manual_seed(self._seed)
        numbers = torch.empty(like.shape, dtype=dtype, device=like.device)
        return numbers.normal_(generator=self._generators[like.device])
