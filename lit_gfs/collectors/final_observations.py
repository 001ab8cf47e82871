"""The final observations of a rollout, without those that its next step shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FinalObservations:
    """The observations that a rollout's steps led to, without those that its next step shows.

    Within an episode, the observation that a step led to is the one that is acted in next. This holds the
    others, of the steps that ended an episode and of each env's last step. It answers to a mask of such steps
    as the tensor of all observations ``(num_envs, T, *shape)`` would.

    Attributes:
        env: Which env each is of, ``(n,)``; together with ``time`` in any order.
        time: Which step led to each, ``(n,)``.
        observation: The observations, ``(n, *shape)``.
    """

    env: Tensor
    time: Tensor
    observation: Tensor

    def __getitem__(self, steps: Tensor) -> Tensor:
        """Return the observations that some steps led to.

        Args:
            steps: Which ones, boolean ``(num_envs, T)``.

        Returns:
            Observations ``(m, *shape)`` in the order of ``steps.nonzero()``, on the device of ``steps``.

        Raises:
            ValueError: If another step than those with an observation is asked for.
        """
        env, time = steps.cpu().nonzero(as_tuple=True)
        row = torch.full(steps.shape, -1)
        row[self.env, self.time] = torch.arange(len(self.env))
        rows = row[env, time]
        if (rows < 0).any():
            missing = int((rows < 0).nonzero()[0])
            raise ValueError(
                f"step {int(time[missing])} of env {int(env[missing])} did not end an episode, nor is it the "
                "last one; expected steps that did, as the other observations are those of the next step"
            )
        return self.observation[rows].to(steps.device)
