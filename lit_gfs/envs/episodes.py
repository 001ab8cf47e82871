"""Steps of a batch of simulators, and the state of the episode that each simulator is in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
"""Observations by name, ``(num_envs, *shape)`` each."""

_LARGEST = float(np.finfo(np.float32).max)


class Outcome(NamedTuple):
    """The result of one step of every simulator.

    All arrays have ``num_envs`` rows, and are never written to afterwards.
    """

    observations: Arrays
    """The observations after the step; where an episode ended, its final observation."""
    reward: NDArray[Any]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    restarted: Arrays | None = None
    """Where simulators begin the next episode by themselves: the observations, with its first one.

    ``None`` leaves the beginning of episodes to `lit_gfs.envs.simulators.Simulators`.
    """


class Step(NamedTuple):
    """One step of every simulator, with the totals of its episode.

    All arrays have ``num_envs`` rows, and are never written to afterwards.
    """

    observations: Arrays
    """The observations after the step; where an episode ended, its final observation."""
    reward: NDArray[Any]
    done: NDArray[np.bool_]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    episode_return: NDArray[np.float64]
    """Sum of the episode's raw rewards, this step included."""
    episode_length: NDArray[np.int64]


class Episodes:
    """The state of every simulator's episode; its arrays are replaced, never written to.

    Args:
        num_envs: Number of simulators.
        seed: Seed of the first full reset.
    """

    def __init__(self, num_envs: int, seed: int) -> None:
        self.seed: int | None = seed
        """Seed of the next full reset; ``None`` goes on with the simulators' generators."""
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, dtype=np.int64)
        self.observations: Arrays = {}
        """The observations that the next action answers to; empty before the first reset."""
        self.already_reset = np.zeros(num_envs, dtype=np.bool_)
        """Where a new episode has begun, but TorchRL has not asked for that reset yet."""

    def count(self, reward: NDArray[Any]) -> None:
        """Add a step to the totals."""
        self.returns = self.returns + reward
        self.lengths = self.lengths + 1

    def keep_finite(self) -> None:
        """Clip returns to the range of float32, the type in which TorchRL gets them."""
        self.returns = np.clip(self.returns, -_LARGEST, _LARGEST)

    def begin(self, rows: Any, observations: Arrays) -> None:
        """Begin episodes in some rows, given the observations of every simulator."""
        self.returns, self.lengths = self.returns.copy(), self.lengths.copy()
        self.returns[rows] = 0
        self.lengths[rows] = 0
        self.observations = observations

    def totals(self) -> Arrays:
        """Return the running totals of each episode."""
        return totals(self.returns, self.lengths)


def totals(returns: NDArray[np.float64], lengths: NDArray[np.int64]) -> Arrays:
    """Return ``episode_return`` and ``episode_length``, ``(num_envs, 1)`` each."""
    return {"episode_return": returns.astype(np.float32)[:, None], "episode_length": lengths[:, None].copy()}
