"""Single simulators, which every environment step steps in a loop."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_gfs.envs.base import BatchedEnv
from lit_gfs.envs.episodes import Arrays, Outcome
from lit_gfs.envs.simulators import env_seeds


class SerialEnv(BatchedEnv):
    """Base of suites without a batched simulator; each of its simulators has its own generator.

    The arguments are those of `BatchedEnv`. Simulators write ``observation``, and `_render_one` gives
    ``pixels``.
    """

    @cached_property
    def _layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape of one row and type of each observation, to allocate them afresh in every step."""
        return {
            key: (tuple(spec.shape[1:]), np.dtype(str(spec.dtype).removeprefix("torch.")))
            for key, spec in self.observation_spec.items()
            if key in ("observation", "pixels")
        }

    @abstractmethod
    def _restart_one(self, index: int, seed: int | None, observation: NDArray[Any]) -> None:
        """Begin an episode in one simulator and write its first observation.

        Args:
            index: The simulator.
            seed: Seed of a new generator; ``None`` goes on with the present one.
            observation: The row to write to.
        """

    @abstractmethod
    def _step_one(self, index: int, action: Any, observation: NDArray[Any]) -> tuple[float, bool, bool]:
        """Step one simulator and write its observation.

        Args:
            index: The simulator.
            action: Its row of the actions.
            observation: The row to write to.

        Returns:
            Reward, terminated, truncated.
        """

    @abstractmethod
    def _render_one(self, index: int) -> NDArray[np.uint8]:
        """Return a picture of one simulator, ``(height, width, 3)``."""

    def _simulate(self, action: NDArray[Any]) -> Outcome:
        observations = self._allocate(self.num_envs)
        reward = np.empty(self.num_envs)
        terminated = np.empty(self.num_envs, dtype=np.bool_)
        truncated = np.empty(self.num_envs, dtype=np.bool_)
        rows = observations["observation"]
        activity = self.activity
        for index, chosen in enumerate(action):
            activity.index = index
            reward[index], terminated[index], truncated[index] = self._step_one(index, chosen, rows[index])
        self._render_into(observations, range(self.num_envs))
        return Outcome(observations, reward, terminated, truncated)

    def _restart(self, indices: NDArray[np.int64], seed: int | None) -> Arrays:
        return self._restart_each(indices, None if seed is None else env_seeds(seed, self.num_envs))

    def _restart_seeded(self, indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> Arrays:
        return self._restart_each(indices, seeds)

    def _restart_each(self, indices: NDArray[np.int64], chosen: NDArray[np.int64] | None) -> Arrays:
        observations = self._allocate(len(indices))
        seeds = [None] * len(indices) if chosen is None else chosen.tolist()
        for row, index in enumerate(indices.tolist()):
            self.activity.index = index
            self._restart_one(index, seeds[row], observations["observation"][row])
        self._render_into(observations, indices.tolist())
        return observations

    def _allocate(self, rows: int) -> Arrays:
        return {key: np.empty((rows, *shape), dtype) for key, (shape, dtype) in self._layout.items()}

    def _render_into(self, observations: Arrays, indices: Any) -> None:
        if "pixels" in observations:
            for row, index in enumerate(indices):
                self.activity.index = index
                observations["pixels"][row] = self._render_one(index)
