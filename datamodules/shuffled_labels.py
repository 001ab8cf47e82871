"""Images with labels or pixels that change from phase to phase, and their training and evaluation loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lit_gfs.errors import UserError
from lit_gfs.utils.seeding import derive_seed

Batch = tuple[Tensor, Tensor]
"""Images ``(batch, *shape)`` and labels ``(batch,)``."""

EVALUATION_BATCH = 1_024
"""Images per evaluation batch."""


class ShuffledLabels:
    """Images whose labels are a new permutation of the true labels in each phase.

    The permutation depends only on the seed and the phase. The first phase may have the true labels.

    Args:
        images: Images ``(N, *shape)``.
        labels: True labels ``(N,)``.
        shuffle_every: Epochs per phase; ``None`` for a single phase.
        seed: Seed of the permutations and of the order of images in each epoch.
        starts_true: Whether the first phase has the true labels.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        shuffle_every: int | None,
        seed: int,
        starts_true: bool = True,
    ) -> None:
        self.images = images
        self.true_labels = labels
        self.shuffle_every = shuffle_every
        self.starts_true = starts_true
        self._seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def phase(self, epoch: int) -> int:
        """Return the number of the epoch's phase, from 0."""
        return 0 if self.shuffle_every is None else epoch // self.shuffle_every

    def labels(self, epoch: int) -> Tensor:
        """Return the labels of an epoch, ``(N,)``."""
        if self._is_true(epoch):
            return self.true_labels
        return self.true_labels[self._permutation("labels", self.phase(epoch), len(self))]

    def select(self, chosen: Tensor | slice, epoch: int) -> Tensor:
        """Return some of the images as they are in an epoch, ``(chosen, *shape)``."""
        return self.images[chosen]

    def order(self, epoch: int) -> Tensor:
        """Return the order of the images in an epoch, as indices ``(N,)``."""
        return self._permutation("order", epoch, len(self))

    def is_shuffled_before(self, epoch: int) -> bool:
        """Return whether an epoch has other labels than the previous epoch."""
        return self.shuffle_every is not None and epoch > 0 and epoch % self.shuffle_every == 0

    def _is_true(self, epoch: int) -> bool:
        """Return whether nothing is shuffled in an epoch."""
        return self.starts_true and self.phase(epoch) == 0

    def _permutation(self, purpose: str, index: int, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(purpose, self._seed, index))
        return torch.randperm(length, generator=generator)


class PermutedPixels(ShuffledLabels):
    """Images with their true labels, whose pixels change places from phase to phase.

    All images of a phase have the same permutation, and all channels of a pixel move together. Every phase is
    a task as hard as the first for a network without convolutions (Goodfellow et al. 2013, arXiv 1312.6211),
    so later phases show what the network has lost (Dohare et al. 2024, Nature 632). The arguments are those
    of `ShuffledLabels`.
    """

    def labels(self, epoch: int) -> Tensor:
        """Return the true labels, ``(N,)``."""
        return self.true_labels

    def select(self, chosen: Tensor | slice, epoch: int) -> Tensor:
        """Return some of the images with the permutation of an epoch, ``(chosen, *shape)``."""
        images = self.images[chosen]
        if self._is_true(epoch):
            return images
        pixels = images.flatten(-2) if images.ndim > 2 else images
        order = self._permutation("pixels", self.phase(epoch), pixels.shape[-1])
        return pixels[..., order].view(images.shape)


class EpochLoader:
    """Training batches, one epoch per pass; an incomplete last batch is dropped.

    Args:
        data: Images, and the labels and the order of each epoch.
        batch_size: Images per batch.
        rank: Rank of this process; each process has its own batches.
        world_size: Number of processes.
        on_first_batch: Called with the epoch before it returns its first batch.
        on_last_batch: Called with the epoch before it returns its last batch.
        before_batch: Called before it returns any batch.
    """

    def __init__(
        self,
        data: ShuffledLabels,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        on_first_batch: Callable[[int], None] = lambda epoch: None,
        on_last_batch: Callable[[int], None] = lambda epoch: None,
        before_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.epoch = 0
        self._position = 0
        self._data = data
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._on_first_batch = on_first_batch
        self._on_last_batch = on_last_batch
        self._before_batch = before_batch
        self._labels = self._order = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._data) // (self._batch_size * self._world_size)

    def __iter__(self) -> EpochLoader:
        if self._position == len(self):
            self.epoch += 1
            self._position = 0
        self._labels = self._data.labels(self.epoch)
        whole = len(self) * self._world_size * self._batch_size
        order = self._data.order(self.epoch)[:whole]
        self._order = order.view(len(self), self._world_size, self._batch_size)[:, self._rank]
        return self

    def __next__(self) -> Batch:
        if self._position == len(self):
            raise StopIteration
        self._before_batch()
        if self._position == 0:
            self._on_first_batch(self.epoch)
        chosen = self._order[self._position]
        self._position += 1
        if self._position == len(self):
            self._on_last_batch(self.epoch)
        return self._data.select(chosen, self.epoch), self._labels[chosen]

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the position in it, which determine the remaining batches."""
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the next batch when the loader is next iterated.

        Raises:
            UserError: If the position is beyond the end of an epoch, because batches were smaller before.
        """
        if state_dict["position"] > len(self):
            raise UserError(
                f"the checkpoint lies {state_dict['position']} batches into an epoch of now {len(self)}; "
                "expected the batch_size that it was written with"
            )
        self.epoch, self._position = state_dict["epoch"], state_dict["position"]


class EvaluationLoader:
    """All images in their original order, as they are in the current epoch, with its labels.

    Args:
        data: Images and their labels in each epoch.
        epoch: Returns the current epoch.
    """

    def __init__(self, data: ShuffledLabels, epoch: Callable[[], int]) -> None:
        self._data = data
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._data) // EVALUATION_BATCH)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._epoch()
        batches = (self._data.select(slice(None), epoch), self._data.labels(epoch))
        return zip(*(part.split(EVALUATION_BATCH) for part in batches), strict=True)
