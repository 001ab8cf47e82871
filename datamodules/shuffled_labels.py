"""Images whose labels change from phase to phase, and the loaders that hand them out."""

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
"""Images that are evaluated at once."""


class ShuffledLabels:
    """Images whose labels are permuted among them from one phase to the next.

    Each phase has a permutation of the true labels that follows from (seed, phase) alone; the first one may
    have the true labels themselves.

    Args:
        images: ``(N, *shape)``.
        labels: The true ones, ``(N,)``.
        shuffle_every: Epochs in a phase; ``None`` for one phase without an end.
        seed: What permutations, and orders of epochs, are drawn from.
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

    def labels(self, epoch: int) -> Tensor:
        """Return the labels that hold in an epoch, ``(N,)``."""
        phase = 0 if self.shuffle_every is None else epoch // self.shuffle_every
        if phase == 0 and self.starts_true:
            return self.true_labels
        return self.true_labels[self._permutation("labels", phase)]

    def order(self, epoch: int) -> Tensor:
        """Return the order in which an epoch visits the images, ``(N,)``."""
        return self._permutation("order", epoch)

    def is_shuffled_before(self, epoch: int) -> bool:
        """Return whether an epoch is the first one on labels that are not those of the epoch before."""
        return self.shuffle_every is not None and epoch > 0 and epoch % self.shuffle_every == 0

    def _permutation(self, purpose: str, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(purpose, self._seed, index))
        return torch.randperm(len(self), generator=generator)


class EpochLoader:
    """One epoch per pass, in batches of equal size; what does not fill a last one is left out.

    Args:
        data: Images, and the labels and the order of each epoch.
        batch_size: Images in a batch.
        rank: This process among ``world_size`` ones, each with batches of its own.
        world_size: How many processes learn.
        on_first_batch: Called with the epoch before its first batch is handed out.
        on_last_batch: Called with the epoch before its last batch is handed out.
    """

    def __init__(
        self,
        data: ShuffledLabels,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        on_first_batch: Callable[[int], None] = lambda epoch: None,
        on_last_batch: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        self.epoch = 0
        self._position = 0
        self._data = data
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._on_first_batch = on_first_batch
        self._on_last_batch = on_last_batch
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
        if self._position == 0:
            self._on_first_batch(self.epoch)
        chosen = self._order[self._position]
        self._position += 1
        if self._position == len(self):
            self._on_last_batch(self.epoch)
        return self._data.images[chosen], self._labels[chosen]

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the position in it: all else follows from them."""
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the next batch, once iterated.

        Raises:
            UserError: If the position lies behind the end of an epoch: batches were smaller before.
        """
        if state_dict["position"] > len(self):
            raise UserError(
                f"the checkpoint lies {state_dict['position']} batches into an epoch of now {len(self)}; "
                "expected the batch_size that it was written with"
            )
        self.epoch, self._position = state_dict["epoch"], state_dict["position"]


class EvaluationLoader:
    """All images in their own order, with the labels that hold when it is iterated.

    Args:
        data: Images and their labels in each epoch.
        epoch: Says which epoch it is.
    """

    def __init__(self, data: ShuffledLabels, epoch: Callable[[], int]) -> None:
        self._data = data
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._data) // EVALUATION_BATCH)

    def __iter__(self) -> Iterator[Batch]:
        batches = (self._data.images, self._data.labels(self._epoch()))
        return zip(*(part.split(EVALUATION_BATCH) for part in batches), strict=True)
