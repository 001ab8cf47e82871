"""A small CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import torch


def write_cifar10(folder: Path, counts: tuple[int, ...] = (64,)) -> bytes:
    """Write files of CIFAR-10's binary format, of so many images each, and return what is in the first."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, count in enumerate(counts, start=1):
        pixels = torch.randint(256, (count, 3073), generator=torch.Generator().manual_seed(number))
        pixels[:, 0] %= 10
        written.append(bytes(pixels.flatten().tolist()))
        (folder / f"data_batch_{number}.bin").write_bytes(written[-1])
    return written[0]
