"""Shares of GPUs: which device a cell of this machine sees."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence

from lit_gfs.errors import UserError

DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_devices() -> list[str]:
    """List the GPUs that this process may use, as `DEVICES_VARIABLE` names them."""
    if (named := os.environ.get(DEVICES_VARIABLE)) is not None:
        return [name for part in named.split(",") if (name := part.strip()) and name != "-1"]
    # Imported late: it takes seconds.
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


class GpuShares:
    """Gives each cell one device, the one with the fewest cells, and no device more cells than it has shares.

    Args:
        share: The part of a device that a cell needs, above 0 and at most 1.
        devices: Names of the devices.

    Raises:
        UserError: If the share is none, or there is no device.
    """

    def __init__(self, share: float, devices: Sequence[str]) -> None:
        if not 0 < share <= 1:
            raise UserError(f"--gpus is {share:g}; expected the part of a GPU that a cell needs, as in 0.25")
        if not devices:
            raise UserError(f"--gpus is {share:g}, and this machine shows no GPU; leave --gpus out")
        # Rounding errors must not cost a cell: three cells of 1/3 share a device.
        self._cells_per_device = math.floor(1 / share + 1e-9)
        self._used: Counter[str] = Counter(dict.fromkeys(devices, 0))
        self._places: dict[str, str] = {}

    @property
    def cells(self) -> int:
        """Number of cells that all devices hold at a time."""
        return self._cells_per_device * len(self._used)

    def take(self, cell: str) -> dict[str, str]:
        """Give a cell a device; return the environment variables that show it that device alone."""
        device, used = min(self._used.items(), key=lambda item: item[1])
        if used >= self._cells_per_device:
            raise ValueError(f"all {self.cells} shares are taken")
        self._used[device] += 1
        self._places[cell] = device
        return {DEVICES_VARIABLE: device}

    def give_back(self, cell: str) -> None:
        """Free the share of a cell that has ended."""
        self._used[self._places.pop(cell)] -= 1
