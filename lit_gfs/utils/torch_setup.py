"""How PyTorch runs on this machine: its threads, and the compiler that `torch.compile` needs."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from lit_gfs.errors import UserError

SMALL_NETWORK = 1_000_000
"""Parameters below which a network gains nothing from a second thread, and loses much on a busy machine."""

LARGEST_COUNT = 1024
"""More threads than any machine could start."""

_COMPILERS = ("g++", "clang++", "c++", "cl")


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


def require_compiler(device: torch.device) -> None:
    """Check that networks on a device can be compiled.

    Raises:
        UserError: If that takes a C++ compiler, and there is none.
    """
    chosen = os.environ.get("CXX")
    if device.type == "cpu" and not any(map(shutil.which, [chosen] if chosen else _COMPILERS)):
        missing = f"CXX is {chosen!r}, which is not there" if chosen else "none is installed"
        raise UserError(
            f"model.compile is true, which needs a C++ compiler on a CPU, but {missing}; install g++ or "
            "leave model.compile false"
        )
