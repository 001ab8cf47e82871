"""What `torch.compile` asks of the machine."""

from __future__ import annotations

import os
import shutil

import torch

from lit_gfs.errors import UserError

_COMPILERS = ("g++", "clang++", "c++", "cl")


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
