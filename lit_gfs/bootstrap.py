"""Values to bootstrap from, for agents that value states as they act in them."""

from __future__ import annotations

from collections.abc import Callable
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


def next_values(
    value: Tensor,
    following: Tensor | FinalObservations,
    done: Tensor,
    terminated: Tensor,
    value_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the values of the states that a rollout's steps led to, with as few evaluations as it takes.

    Within an episode the next state's value was computed when that state was acted in. Only the final
    observation of a truncated episode, and the one that each env's last step led to, were never acted in.

    Args:
        value: Values of the states that were acted in, ``(num_envs, T)``.
        following: The observations that the steps led to, the true final ones where an episode ended,
            ``(num_envs, T, *shape)``; final ones are enough.
        done: Whether the episode ended, terminated or truncated, boolean ``(num_envs, T)``.
        terminated: Whether it ended for good, boolean ``(num_envs, T)``.
        value_of: Maps observations ``(n, *shape)`` to values ``(n,)``.

    Returns:
        Values, ``(num_envs, T)``; those of terminated steps mean nothing.
    """
    next_value = torch.cat([value[:, 1:], value[:, -1:]], dim=1)
    is_unknown = done & ~terminated
    is_unknown[:, -1] = ~terminated[:, -1]
    if is_unknown.any():
        next_value[is_unknown] = value_of(following[is_unknown])
    return next_value
