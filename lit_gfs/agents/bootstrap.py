"""Values to bootstrap from, for agents that value states as they act in them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def next_values(
    value: Tensor,
    following: Tensor,
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
            ``(num_envs, T, *shape)``.
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
