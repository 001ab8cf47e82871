"""Outcomes of several steps in a row, read from stored single steps when they are sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def outcome(
    columns: Mapping[str, NDArray[Any]], slots: NDArray[np.int64], is_real: NDArray[np.bool_]
) -> dict[str, Tensor]:
    """Return rewards and ends of n steps in a row, with 0 and false after the last real one.

    Args:
        columns: Rewards and flags of all transitions by name, ``(slots, 1)`` each.
        slots: The slots of n steps in a row, ``(*batch, n)``.
        is_real: Which of them are steps of the episode that the first one belongs to, ``(*batch, n)``; the
            first one always is.

    Returns:
        Each column ``(*batch, n)``, and the number ``steps`` of real steps, ``(*batch, 1)``.
    """
    rows = {name: column[slots].squeeze(-1) for name, column in columns.items()}
    steps = is_real.sum(-1, keepdims=True)
    masked = {name: torch.from_numpy(np.where(is_real, row, row.dtype.type(0))) for name, row in rows.items()}
    return {**masked, "steps": torch.from_numpy(steps)}


def last_real(slots: NDArray[np.int64], is_real: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the slot of the last real step, ``(*batch,)`` of ``(*batch, n)``."""
    return np.take_along_axis(slots, is_real.sum(-1, keepdims=True) - 1, -1).squeeze(-1)
