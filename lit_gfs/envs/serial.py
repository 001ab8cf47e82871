"""Simulators that exist one by one, stepped in a loop inside one environment step."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrl.data import TensorSpec, Unbounded

from lit_gfs.envs.base import Arrays, BatchedEnv, Outcome, env_seeds


class SerialEnv(BatchedEnv):
    """Base of suites without a batched simulator; each simulator has a generator of its own.

    Args:
        env_id: The id that a user knows this environment by.
        num_envs: How many simulators there are.
        observation: Spec of ``observation``, ``(num_envs, *shape)``.
        action: Spec of ``action``, ``(num_envs,)`` or ``(num_envs, dim)``.
        frame_skip: Simulator frames per step.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        picture_shape: ``(height, width, 3)`` of what `_render_one` returns; ``None`` renders nothing.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        observation: TensorSpec,
        action: TensorSpec,
        frame_skip: int,
        seed: int | None,
        picture_shape: tuple[int, ...] | None,
    ) -> None:
        observations = {"observation": observation}
        if picture_shape is not None:
            observations["pixels"] = Unbounded((num_envs, *picture_shape), dtype=torch.uint8)
        super().__init__(env_id, num_envs, observations, action, frame_skip, seed)
        # Shape of one row and type of each observation, to allocate them afresh in every step.
        self._layout = {
            key: (tuple(spec.shape[1:]), np.dtype(str(spec.dtype).removeprefix("torch.")))
            for key, spec in observations.items()
        }

    @abstractmethod
    def _restart_one(self, index: int, seed: int | None, observation: NDArray[Any]) -> None:
        """Begin an episode in one simulator and write what it shows into ``observation``.

        Args:
            index: Which simulator.
            seed: Replaces its generator; ``None`` goes on with the one it has.
            observation: One row, to write into.
        """

    @abstractmethod
    def _step_one(self, index: int, action: Any, observation: NDArray[Any]) -> tuple[float, bool, bool]:
        """Step one simulator and write what it shows into ``observation``.

        Args:
            index: Which simulator.
            action: Its row of the actions.
            observation: One row, to write into.

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
