"""Random numbers of Kron, from separate generators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Random numbers for one update of the factors.

    ``pytorch_optimizer.Kron`` draws the same numbers from the global generators of NumPy and PyTorch if both
    are seeded with ``seed``. This class does not change the global generators.

    Args:
        seed: Seed of all numbers.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def uniform(self) -> float:
        """Return a number in [0, 1); all calls return the same number."""
        return np.random.RandomState(self._seed).random_sample()

    def normal(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Draw new standard normal numbers.

        Args:
            like: Tensor with the shape and the device of the result.
            dtype: Dtype of the result.
        """
        if like.device not in self._generators:
            self._generators[like.device] = torch.Generator(like.device).manual_seed(self._seed)
        numbers = torch.empty(like.shape, dtype=dtype, device=like.device)
        return numbers.normal_(generator=self._generators[like.device])
