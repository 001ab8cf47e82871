"""How many threads PyTorch computes with."""

from __future__ import annotations

import os

import torch
from torch import nn

from lit_gfs.errors import UserError

SMALL_NETWORK = 1_000_000
"""Parameters below which a network gains nothing from a second thread, and loses much on a busy machine."""


LARGEST_COUNT = 1024


def set_threads(requested: int | None, module: nn.Module) -> None:
    """Choose PyTorch's thread count for a network.

    Args:
        requested: What the user asked for; ``None`` takes ``OMP_NUM_THREADS`` if that is set, else one
            thread for a small network and PyTorch's own choice for others.
        module: The network, for its size.

    Raises:
        UserError: If more are asked for than any machine could start.
    """
    if requested is not None:
        if requested > LARGEST_COUNT:
            raise UserError(f"threads is {requested}; expected at most {LARGEST_COUNT}")
        torch.set_num_threads(requested)
    elif "OMP_NUM_THREADS" not in os.environ:
        parameters = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        if parameters < SMALL_NETWORK:
            torch.set_num_threads(1)
