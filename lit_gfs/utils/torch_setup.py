"""PyTorch on this machine: threads, precision of matrix products, and the compiler for `torch.compile`."""

from __future__ import annotations

import os
import shutil
from typing import Literal

import torch
from torch import nn

from lit_gfs.errors import UserError

SMALL_NETWORK = 1_000_000
"""A network with fewer parameters gains nothing from a second thread, and loses much on a busy machine."""

LARGEST_COUNT = 1024
"""Maximum number of threads: no machine could start more."""

MatmulPrecision = Literal["highest", "high", "medium"]
"""Precision of products of float32 matrices, as ``torch.set_float32_matmul_precision`` names them."""

_COMPILERS = ("g++", "clang++", "c++", "cl")


def set_threads(requested: int | None, module: nn.Module) -> None:
    """Choose PyTorch's thread count for a network.

    Args:
        requested: The user's choice; ``None`` takes ``OMP_NUM_THREADS`` if that is set, else one thread for a
            small network and PyTorch's own choice for others.
        module: The network, for its size.

    Raises:
        UserError: If the user asks for more than `LARGEST_COUNT` threads.
    """
    if requested is not None:
        if requested > LARGEST_COUNT:
            raise UserError(f"threads is {requested}; expected at most {LARGEST_COUNT}")
        torch.set_num_threads(requested)
    elif "OMP_NUM_THREADS" not in os.environ:
        parameters = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        if parameters < SMALL_NETWORK:
            torch.set_num_threads(1)


def set_matmul_precision(precision: MatmulPrecision, device: torch.device) -> None:
    """Choose how precisely PyTorch multiplies float32 matrices in this process.

    On the CPU, ``high`` means ``highest``. PyTorch would hand TF32 on to oneDNN, which has it on some
    processors, and the results of a run would depend on the machine.

    Args:
        precision: ``highest``, ``high`` (TF32 on GPUs), or ``medium`` (TF32 on GPUs, bfloat16 on CPUs with
            instructions for it).
        device: The device that trains.
    """
    is_cpu = device.type == "cpu"
    torch.set_float32_matmul_precision("highest" if is_cpu and precision == "high" else precision)


def require_compiler(device: torch.device) -> None:
    """Check that networks on a device can be compiled.

    Raises:
        UserError: If that needs a C++ compiler, and there is none.
    """
    chosen = os.environ.get("CXX")
    if device.type == "cpu" and not any(map(shutil.which, [chosen] if chosen else _COMPILERS)):
        missing = f"CXX is {chosen!r}, which is not there" if chosen else "none is installed"
        raise UserError(
            f"model.compile is true, which needs a C++ compiler on a CPU, but {missing}; install g++ or "
            "leave model.compile false"
        )
