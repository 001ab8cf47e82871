"""Transfers of tensors from the host to a device that the host does not wait for."""

from __future__ import annotations

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
