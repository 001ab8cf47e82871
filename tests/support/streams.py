"""Streams of transitions that are numbered in ``action``, with a record of all that were given out."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor


class VectorStream:
    """Environments that show vectors: the number of the transition and its environment.

    Args:
        num_envs: Environments.
        seed: Of rewards and of the ends of episodes.
        episode_end: Probability that a step ends an episode.
        lives: Whether lives are lost on the way.
    """

    def __init__(self, num_envs: int, seed: int, episode_end: float = 0.2, lives: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.num_envs = num_envs
        self.episode_end = episode_end
        self.lives = lives
        self.seen: list[TensorDict] = []
        self.begin()

    def begin(self) -> None:
        """Begin new episodes in all environments."""
        self.current = self.observe(np.arange(self.num_envs))

    def observe(self, envs: np.ndarray) -> np.ndarray:
        return np.stack([envs, self.rng.random(len(envs))], 1).astype(np.float32)

    def follow(self, current: np.ndarray) -> np.ndarray:
        """Return the observation after a step in each environment."""
        return self.observe(np.arange(self.num_envs))

    def step(self) -> TensorDict:
        """Return the next transition of each environment, ``(num_envs,)``."""
        number = len(self.seen) * self.num_envs
        following = self.follow(self.current)
        terminated = self.rng.random(self.num_envs) < self.episode_end / 2
        truncated = ~terminated & (self.rng.random(self.num_envs) < self.episode_end / 2)
        columns = {
            "reward": self.rng.normal(size=self.num_envs).astype(np.float32),
            "done": terminated | truncated,
            "terminated": terminated,
            "truncated": truncated,
        }
        if self.lives:
            columns["end_of_life"] = self.rng.random(self.num_envs) < 0.2
        next_ = {name: torch.from_numpy(column)[:, None] for name, column in columns.items()}
        transition = TensorDict(
            {
                "observation": torch.from_numpy(self.current.copy()),
                "action": torch.arange(number, number + self.num_envs),
                "next": {"observation": torch.from_numpy(following.copy()), **next_},
            },
            [self.num_envs],
        )
        self.seen.append(transition)
        before = following.copy()
        self.begin()  # draws the first observations of new episodes
        ended = terminated | truncated
        self.current = np.where(ended.reshape(-1, *[1] * (before.ndim - 1)), self.current, before)
        return transition

    def rollout(self, steps: int) -> TensorDict:
        """Return transitions ``(num_envs, steps)``."""
        return torch.stack([self.step() for _ in range(steps)], 1)

    def expected(self, numbers: Tensor) -> TensorDict:
        """Return the transitions with these numbers as they were given out."""
        return torch.cat(self.seen)[numbers]


class StackStream(VectorStream):
    """The same with stacks of four frames of two by two pixels; options as for `VectorStream`."""

    def observe(self, envs: np.ndarray) -> np.ndarray:
        return self.rng.integers(0, 256, (len(envs), 4, 2, 2), np.uint8)

    def follow(self, current: np.ndarray) -> np.ndarray:
        newest = self.rng.integers(0, 256, (self.num_envs, 1, 2, 2), np.uint8)
        return np.concatenate([current[:, 1:], newest], 1)
