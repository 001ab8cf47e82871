"""Pictures of boards."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from lit_gfs.envs.minatar.game import SIZE

_CELL = 16
"""Height and width of a cell, in pixels."""

PICTURE = (SIZE * _CELL, SIZE * _CELL, 3)
"""Shape of a picture."""


def pictures(boards: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Paint each channel in its own color on black, later channels over earlier ones.

    Args:
        boards: ``(num_envs, channels, 10, 10)``.

    Returns:
        RGB, ``(num_envs, 160, 160, 3)``.
    """
    channels = boards.shape[1]
    palette = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(index / channels, 0.7, 1) for index in range(channels))]
    colors = np.array(palette, dtype=np.float64)
    number = np.arange(1, channels + 1)[:, None, None]
    cells = np.rint(255 * colors[(boards * number).max(axis=1)]).astype(np.uint8)
    return cells.repeat(_CELL, axis=1).repeat(_CELL, axis=2)
