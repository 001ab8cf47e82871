"""Transfers of tensors between the host and a device that the host does not wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

Data = TypeVar("Data", Tensor, TensorDictBase)


def send(data: Data, device: torch.device) -> Data:
    """Send a tensor, or the tensors of a tensordict, to a device without waiting for the copy.

    CUDA copies without making the host wait only from page-locked memory, so data on the CPU are moved there
    first. PyTorch keeps that memory until the copy has ended, so the caller may drop or change ``data``.

    Args:
        data: Tensors anywhere; those of a tensordict are on the CPU if it has no device.
        device: Where they go.

    Returns:
        The data on the device; ``data`` itself if it is there already.
    """
    if data.device == device:
        return data
    if device.type == "cuda" and (data.device is None or data.device.type == "cpu"):
        # By default a tensordict would start a thread for each of its tensors.
        data = data.pin_memory() if isinstance(data, Tensor) else data.pin_memory(num_threads=0)
    return data.to(device, non_blocking=True)


def fetch(data: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the host; wait for the copy only where its numbers are needed.

    Args:
        data: A tensor anywhere; it must not be changed in place later.

    Returns:
        A function that waits for the copy and returns it.
    """
    if data.device.type != "cuda":
        return data.cpu
    # A copy into page-locked memory goes on while the host does.
    copy = torch.empty(data.shape, dtype=data.dtype, pin_memory=True).copy_(data, non_blocking=True)
    has_arrived = torch.cuda.Event()
    has_arrived.record(torch.cuda.current_stream(data.device))

    def wait() -> Tensor:
        has_arrived.synchronize()
        return copy

    return wait
