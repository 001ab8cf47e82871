"""Prioritized replay (Schaul et al. 2016, arXiv 1511.05952), with proportional priorities.

A transition is drawn with a probability in proportion to p^alpha, where p is how much there was to learn from
it the last time: its absolute temporal-difference error or, with distributional losses, its cross-entropy.
New transitions have the largest priority so far, so that each is likely to be drawn soon. Importance weights
(1 / (N P))^beta, divided by the largest one of the batch, undo the bias; beta grows to 1 over the run.

TorchRL has such a sampler in a C++ extension, which does not load beside every version of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.data.replay_buffers.storages import Storage

from lit_gfs.buffers.ring import RingStorage
from lit_gfs.buffers.sum_tree import SumTree
from lit_gfs.buffers.writer import RolloutReplay, RolloutWriter, unchanged
from lit_gfs.utils.transfers import fetch

_LEAST = 1e-6
"""Added to each priority, so that no transition is lost for ever (epsilon in section 3.3 of the paper)."""


class PrioritizedSampler(Sampler):
    """Draws transitions by their priorities, with torch's global generator.

    Priorities belong to slots: the places that transitions keep until they are overwritten.

    Args:
        capacity: Number of slots.
        alpha: Exponent of the priorities; 0 draws uniformly.
        beta: Returns the exponent of the importance weights, from 0 (no correction) to 1 (full correction).
    """

    def __init__(self, capacity: int, alpha: float, beta: Callable[[], float]) -> None:
        super().__init__()
        self._tree = SumTree(capacity)
        self._alpha = alpha
        self._beta = beta
        self._largest = 1.0  # of all priorities so far
        # Slots are written again and again: a priority is for what was in the slot when it was drawn.
        self._writes = np.zeros(capacity, np.int64)
        self._drawn = (np.zeros(0, np.int64), np.zeros(0, np.int64))  # slots of the last sample, their writes
        self._pending: Callable[[], Tensor] | None = None

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Draw one transition from each of ``batch_size`` equal parts of the sum of all priorities.

        Returns:
            The transitions' indices in the storage, and their importance ``weight``, ``(batch_size,)`` each.
        """
        self._take_priorities()
        draws = torch.rand(batch_size, dtype=torch.float64).numpy()
        slots = self._tree.find((np.arange(batch_size) + draws) * (self._tree.total / batch_size))
        self._drawn = slots, self._writes[slots]
        probability = self._tree[slots]
        # N and the sum of all priorities cancel in the division by the largest weight.
        weight = (probability.min() / probability) ** self._beta()
        index = torch.from_numpy(cast(RingStorage, storage).index_of(slots))
        return index, {"weight": torch.from_numpy(weight.astype(np.float32))}

    def add(self, slots: NDArray[np.int64]) -> None:
        """Give new transitions the largest priority so far."""
        self._take_priorities()
        self._writes[slots] += 1
        self._tree[slots] = self._largest**self._alpha

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Exclude the transitions in these slots from all later draws."""
        self._writes[slots] += 1
        self._tree[slots] = 0.0

    def update(self, priority: Tensor) -> None:
        """Set the priorities of the last sample's transitions.

        On a GPU they are on their way to the host until the next rollout is stored, when the host has waited
        for the GPU's actions anyway.

        Args:
            priority: Priorities before the exponent ``(batch_size,)``, not negative. One that is not finite
                counts as the largest so far.
        """
        self._pending = fetch(priority)

    def _take_priorities(self) -> None:
        """Write the priorities that were sent to the host last."""
        if self._pending is None:
            return
        priority = self._wait_for(self._pending)
        self._pending = None
        slots, writes = self._drawn
        priority = np.where(np.isfinite(priority), priority + _LEAST, self._largest)
        self._largest = max(self._largest, float(priority.max()))
        is_there = self._writes[slots] == writes
        self._tree[slots[is_there]] = priority[is_there] ** self._alpha

    def _wait_for(self, pending: Callable[[], Tensor]) -> NDArray[np.float64]:
        """Return priorities that were sent to the host: it may wait for the device here, once an update."""
        return pending().double().numpy()

    # -- state -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the priority of each slot, after the exponent, and the largest one before it."""
        self._take_priorities()
        return {"priorities": torch.from_numpy(self._tree[:]), "largest": self._largest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with saved priorities."""
        self._largest = state_dict["largest"]
        self._tree[np.arange(self._tree.capacity)] = state_dict["priorities"].numpy()

    # TorchRL requires these methods of every sampler. A checkpoint has the state.

    def dumps(self, path: str | Path) -> None:
        """Write nothing."""

    def loads(self, path: str | Path) -> None:
        """Read nothing."""

    def _empty(self) -> None:
        self._tree[np.arange(self._tree.capacity)] = 0.0


class PrioritizedReplay(RolloutReplay):
    """A replay buffer whose samples have an importance ``weight``, and which learns of priorities."""

    _sampler: PrioritizedSampler

    def extend(self, data: TensorDictBase, **options: Any) -> Tensor:
        """Append a rollout; its transitions have the largest priority so far."""
        index = super().extend(data, **options)
        storage = cast(RingStorage, self._storage)
        kept = index.reshape(-1).numpy()
        # A long rollout may write a slot, drop its transition, and write the slot again.
        self._sampler.remove(storage.dropped_slots)
        self._sampler.add(storage.slots(kept[kept >= 0]))
        return index

    def _sample(self, batch_size: int) -> tuple[Any, dict[str, Any]]:
        batch, info = super()._sample(batch_size)
        cast(TensorDict, batch).set("weight", info["weight"])
        return batch, info

    def update_priorities(self, priority: Tensor) -> None:
        """Set the priorities ``(batch_size,)`` of the last sample's transitions."""
        self._sampler.update(priority)

    def priorities_state(self) -> dict[str, Any]:
        """Return the priorities of all transitions, as plain data and tensors."""
        return self._sampler.state_dict()

    def load_priorities_state(self, state: dict[str, Any] | None) -> None:
        """Go on with saved priorities; without any, all transitions have the same."""
        if state is None:
            everything = np.arange(len(self._storage))
            self._sampler.add(cast(RingStorage, self._storage).slots(everything))
        else:
            self._sampler.load_state_dict(state)


def prioritized_replay_buffer(
    storage: RingStorage, batch_size: int, sampler: PrioritizedSampler
) -> ReplayBuffer:
    """Make a replay buffer that draws by priorities.

    Args:
        storage: The transitions.
        batch_size: Transitions in a sample.
        sampler: Draws them; it has as many slots as the storage.

    Returns:
        A buffer whose ``extend`` takes rollouts ``(num_envs, T)`` and whose ``sample`` gives
        ``(batch_size,)``, with ``weight`` in it.
    """
    return PrioritizedReplay(
        storage=storage,
        sampler=sampler,
        writer=RolloutWriter(),
        collate_fn=unchanged,
        batch_size=batch_size,
    )
