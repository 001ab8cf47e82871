"""The history of simulators: the seeds and actions that lead to their present state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_gfs.utils.seeding import derive_seed

MOST_STEPS = 200_000
"""Most vector steps in a history, to bound its memory when an episode never ends."""


class History:
    """The seed of each simulator's latest seeded reset, and all actions since.

    If all draws of a simulator follow from its seed, the same reset and the same actions bring it back to its
    state. A seeded reset may take much longer than others, so a seed lasts for several episodes: the first
    episode after ``steps_per_seed`` steps begins with a new one.

    Args:
        num_envs: Number of simulators.
        steps_per_seed: Steps of a simulator after which its next episode begins with a new seed.
    """

    def __init__(self, num_envs: int, steps_per_seed: int) -> None:
        self._steps_per_seed = steps_per_seed
        self._seeds = np.zeros(num_envs, dtype=np.int64)
        self._seeded_at = np.zeros(num_envs, dtype=np.int64)
        self._count = 0
        self._actions: list[NDArray[Any]] = []
        self.is_complete = False
        """Whether the simulators' state follows from the seeds and actions here."""

    def begin_all(self, seeds: NDArray[np.int64]) -> None:
        """Start over: all simulators were reset with seeds ``(num_envs,)``."""
        self._seeds = seeds.copy()
        self._seeded_at = np.zeros_like(self._seeded_at)
        self._count, self._actions = 0, []
        self.is_complete = True

    def begin(self, indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        """Record that some simulators were reset, with one seed per index."""
        self._seeds[indices] = seeds
        self._seeded_at[indices] = self._count
        self._remove_unneeded_actions()

    def record(self, action: NDArray[Any]) -> None:
        """Record a step of all simulators, given their actions ``(num_envs, ...)``."""
        if not self.is_complete:
            return
        if len(self._actions) == MOST_STEPS:
            self.is_complete, self._actions = False, []
            return
        is_byte = action.dtype.kind == "i" and action.ndim == 1 and action.max() < 256
        self._actions.append(action.astype(np.uint8) if is_byte else action.copy())
        self._count += 1

    def due(self, ended: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the indices of simulators whose episode has ended and whose seed has lasted long enough."""
        return np.flatnonzero(ended & (self._count - self._seeded_at >= self._steps_per_seed))

    def next_seeds(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Derive the next seeds of some simulators from their present ones."""
        seeds = [derive_seed("episode", int(self._seeds[index]), int(index)) for index in indices]
        return np.array(seeds, dtype=np.int64)

    def state(self) -> dict[str, Tensor] | None:
        """Return the seeds, the steps since, and the actions.

        Returns:
            ``seeds`` and ``steps`` ``(num_envs,)``, ``actions`` ``(T, num_envs, ...)``; ``None`` if the
            simulators' state does not follow from them.
        """
        if not self.is_complete:
            return None
        steps = self._count - self._seeded_at
        needed = self._actions[len(self._actions) - int(steps.max()) :]
        actions = np.stack(needed) if needed else np.empty((0, len(steps)))
        return {
            "seeds": torch.from_numpy(self._seeds.copy()),
            "steps": torch.from_numpy(steps),
            "actions": torch.from_numpy(actions),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state`."""
        actions = state["actions"].numpy()
        self.begin_all(state["seeds"].numpy())
        self._count, self._actions = len(actions), list(actions)
        self._seeded_at = self._count - state["steps"].numpy()

    def _remove_unneeded_actions(self) -> None:
        """Remove the actions from before all seeds, once there are many."""
        unneeded = len(self._actions) - self._count + int(self._seeded_at.min())
        if unneeded > self._steps_per_seed:
            del self._actions[:unneeded]
