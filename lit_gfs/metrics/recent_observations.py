"""The latest observations of a run, for monitors to probe networks with."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class RecentObservations:
    """A bounded sample of the latest observations, in equal parts of all environments.

    Args:
        size: The most observations that `latest` returns.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._samples: deque[Tensor] = deque()
        self._count = 0

    def add(self, observation: Tensor) -> None:
        """Add the observations of a rollout, ``(num_envs, T, *shape)``; the collector may write over them."""
        self._samples.append(_latest_of_each(observation, self.size).clone())
        self._count += len(self._samples[-1])
        while self._count - len(self._samples[0]) >= self.size:
            self._count -= len(self._samples.popleft())

    def latest(self) -> Tensor | None:
        """Return up to ``size`` observations ``(n, *shape)``, the newest last; ``None`` before the first."""
        if not self._samples:
            return None
        # Those of a checkpoint are on the CPU; those of environments in tensors are not.
        device = self._samples[-1].device
        return torch.cat([sample.to(device) for sample in self._samples])[-self.size :].clone()

    def restore(self, observations: Tensor | None) -> None:
        """Hold what `latest` returned."""
        self._samples = deque([] if observations is None else [observations])
        self._count = 0 if observations is None else len(observations)

    def __len__(self) -> int:
        """Return how many observations are held."""
        return self._count


def _latest_of_each(observation: Tensor, size: int) -> Tensor:
    """Return about ``size`` of the latest observations ``(num_envs, T, *shape)``, of all environments alike.

    Where there are more environments than that, some are taken at even distances.
    """
    num_envs, steps = observation.shape[:2]
    if num_envs > size:
        return observation[torch.linspace(0, num_envs - 1, size).long(), -1]
    latest = observation[:, -min(steps, -(-size // num_envs)) :]
    return latest.transpose(0, 1).flatten(0, 1)[-size:]
