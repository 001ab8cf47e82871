"""Final observations of a rollout: those that are not the observation of its next step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FinalObservations:
    """The next observations of the steps that ended an episode, and of each env's last step.

    Within an episode, the next observation of a step is the observation of the step after it, so the rollout
    has it already. Indexed by a mask of steps that ended an episode or are the last, this gives the same as
    the tensor of all next observations ``(num_envs, T, *shape)``.

    Attributes:
        env: The env of each observation, ``(n,)``; together with ``time`` in any order.
        time: The step before each observation, ``(n,)``.
        observation: The observations, ``(n, *shape)``.
    """

    env: Tensor
    time: Tensor
    observation: Tensor

    def __getitem__(self, steps: Tensor) -> Tensor:
        """Return the next observations of some steps.

        Args:
            steps: Mask of the steps, boolean ``(num_envs, T)``.

        Returns:
            Observations ``(m, *shape)`` in the order of ``steps.nonzero()``, on the device of ``steps``.

        Raises:
            ValueError: If the mask has a step that did not end an episode and is not the last.
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
