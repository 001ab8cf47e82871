"""TorchRL's specs of the actions that a batch of environments takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrl.data import Bounded, Categorical, MultiCategorical, Unbounded


def discrete_action(num_actions: int, num_envs: int) -> Categorical:
    """Describe actions ``(num_envs,)``, each an index below ``num_actions``."""
    return Categorical(num_actions, shape=(num_envs,), dtype=torch.int64)


def multi_discrete_action(choices: Sequence[int], num_envs: int) -> MultiCategorical:
    """Describe actions ``(num_envs, parts)``; part ``i`` is an index below ``choices[i]``."""
    return MultiCategorical(list(choices), shape=(num_envs, len(choices)), dtype=torch.int64)


def continuous_action(low: NDArray[Any], high: NDArray[Any], num_envs: int) -> Bounded | Unbounded:
    """Describe actions ``(num_envs, dim)`` between bounds ``(dim,)``, some of which may be infinite."""
    if not np.isfinite([low, high]).all():
        # A bounded spec draws NaN where there is no bound.
        return Unbounded((num_envs, len(low)), dtype=torch.float32)
    bounds = [torch.as_tensor(bound, dtype=torch.float32).expand(num_envs, -1) for bound in (low, high)]
    return Bounded(bounds[0], bounds[1], shape=bounds[0].shape, dtype=torch.float32)
