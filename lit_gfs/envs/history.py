"""Where simulators are, as the seeds and the actions that brought them there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_gfs.utils.seeding import derive_seed

MOST_STEPS = 200_000
"""Vector steps that a history may hold; an episode that never ends must not fill the memory."""


class History:
    """For every simulator, the seed of its latest seeded reset and all actions since.

    A simulator whose draws all follow from its seed is brought back by that reset and those actions, at the
    cost of taking them again. A seed lasts for several episodes, as a seeded reset may take much longer than
    others: once ``steps_per_seed`` steps have been taken, the next episode is to begin with a new one.

    Args:
        num_envs: How many simulators there are.
        steps_per_seed: Steps of a simulator after which its next episode begins with a seed of its own.
    """

    def __init__(self, num_envs: int, steps_per_seed: int) -> None:
        self._steps_per_seed = steps_per_seed
        self._seeds = np.zeros(num_envs, dtype=np.int64)
        self._seeded_at = np.zeros(num_envs, dtype=np.int64)
        self._count = 0
        self._actions: list[NDArray[Any]] = []
        self.is_complete = False
        """Whether the simulators' state follows from what is held."""

    def begin_all(self, seeds: NDArray[np.int64]) -> None:
        """Forget everything: all simulators were reset with seeds ``(num_envs,)``."""
        self._seeds = seeds.copy()
        self._seeded_at = np.zeros_like(self._seeded_at)
        self._count, self._actions = 0, []
        self.is_complete = True

    def begin(self, indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        """Note that some simulators were reset with seeds, one per index."""
        self._seeds[indices] = seeds
        self._seeded_at[indices] = self._count
        self._forget_what_came_before()

    def record(self, action: NDArray[Any]) -> None:
        """Note a step of all simulators, given their actions ``(num_envs, ...)``."""
        if not self.is_complete:
            return
        if len(self._actions) == MOST_STEPS:
            self.is_complete, self._actions = False, []
            return
        is_byte = action.dtype.kind == "i" and action.ndim == 1 and action.max() < 256
        self._actions.append(action.astype(np.uint8) if is_byte else action.copy())
        self._count += 1

    def due(self, ended: NDArray[np.bool_]) -> NDArray[np.int64]:
        """List the simulators, among those whose episode has ended, that need a new seed."""
        return np.flatnonzero(ended & (self._count - self._seeded_at >= self._steps_per_seed))

    def next_seeds(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Derive the next seed of some simulators, a function of the one that each has."""
        seeds = [derive_seed("episode", int(self._seeds[index]), int(index)) for index in indices]
        return np.array(seeds, dtype=np.int64)

    def state(self) -> dict[str, Tensor] | None:
        """Return seeds and steps since, ``(num_envs,)``, and actions ``(T, num_envs, ...)``.

        ``None`` if the simulators' state does not follow from them.
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
        """Take over what `state` returned."""
        actions = state["actions"].numpy()
        self.begin_all(state["seeds"].numpy())
        self._count, self._actions = len(actions), list(actions)
        self._seeded_at = self._count - state["steps"].numpy()

    def _forget_what_came_before(self) -> None:
        """Drop the actions that no simulator needs any more, now and then."""
        unneeded = len(self._actions) - self._count + int(self._seeded_at.min())
        if unneeded > self._steps_per_seed:
            del self._actions[:unneeded]
