"""Labelled image data sets, loaded into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_gfs.errors import UserError, require_one_of

CLASSES = 10
"""Number of labels of each data set."""

CIFAR10_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR10_SHAPE = (3, 32, 32)
_CIFAR10_RECORD = 1 + 3 * 32 * 32


def load_images(dataset: str, root: str, samples: int | None) -> tuple[Tensor, Tensor]:
    """Load the training images of a data set.

    Args:
        dataset: ``digits`` or ``cifar10``; see `load_digits` and `load_cifar10`.
        root: Folder with the files of ``cifar10``.
        samples: Number of images, from the first on; ``None`` loads all.

    Returns:
        Images ``(samples, *shape)``, and int64 labels ``(samples,)`` from 0 to 9.

    Raises:
        UserError: If the data set is unknown, a file is missing or damaged, or there are fewer images.
    """
    require_one_of(("digits", "cifar10"), dataset=dataset)
    images, labels = load_digits() if dataset == "digits" else load_cifar10(Path(root), samples)
    if samples is not None and samples > len(images):
        raise UserError(f"samples is {samples}; expected at most {len(images)}, as many as {dataset!r} has")
    return images[:samples], labels[:samples]


def load_digits() -> tuple[Tensor, Tensor]:
    """Load the 1,797 handwritten digits that are a part of scikit-learn.

    Returns:
        Images of 8 x 8 grey values as float32 vectors ``(1797, 64)`` in [0, 1], and labels ``(1797,)``.
    """
    from sklearn import datasets  # this import takes a second

    pixels, labels = datasets.load_digits(return_X_y=True)
    return torch.from_numpy(pixels / 16).float(), torch.from_numpy(labels).long()


def load_cifar10(root: Path, samples: int | None = None) -> tuple[Tensor, Tensor]:
    """Load CIFAR-10's training images from the published binary format.

    A file is a sequence of records: one byte for the label, then 3,072 bytes for the pixels, channel by
    channel. The published Python format is not supported, because reading it runs code.

    Args:
        root: Folder with ``data_batch_1.bin`` to ``data_batch_5.bin``.
        samples: Number of images; further files are not read. ``None`` reads all files.

    Returns:
        Uint8 images ``(N, 3, 32, 32)`` and labels ``(N,)``, where N is at least ``samples``.

    Raises:
        UserError: If a required file is missing or damaged.
    """
    parts: list[np.ndarray] = []
    for name in CIFAR10_FILES:
        if samples is not None and sum(map(len, parts)) >= samples:
            break
        parts.append(_read_records(root / name))
    records = np.concatenate(parts)
    images = torch.from_numpy(records[:, 1:].copy()).reshape(-1, *_CIFAR10_SHAPE)
    return images, torch.from_numpy(records[:, 0].astype(np.int64))


def _read_records(path: Path) -> np.ndarray:
    """Return the records of a file, uint8 ``(count, 3073)``."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(
            f"root {str(path.parent)!r} has no file {path.name!r} that can be read; expected the folder "
            "'cifar-10-batches-bin' with data_batch_1.bin to data_batch_5.bin: unpack the binary version of "
            "https://www.cs.toronto.edu/~kriz/cifar.html (cifar-10-binary.tar.gz) and give its path as root"
        ) from error
    if not len(content) or len(content) % _CIFAR10_RECORD:
        raise UserError(
            f"{str(path)!r} has {len(content):,} bytes; expected records of {_CIFAR10_RECORD:,} bytes "
            "(30,730,000 in a published file): it is truncated or no CIFAR-10 binary file"
        )
    records = content.reshape(-1, _CIFAR10_RECORD)
    largest = int(records[:, 0].max())
    if largest >= CLASSES:
        raise UserError(
            f"{str(path)!r} has a label {largest}; expected 0 to 9: it is no CIFAR-10 binary file"
        )
    return records
