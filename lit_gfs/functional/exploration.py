"""Exploration: epsilon-greedy actions and the schedule of epsilon.

A schedule depends only on the number of environment steps, so a resumed run continues the same schedule.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_schedule(step: int, start: float, end: float, duration: int) -> float:
    """Interpolate linearly from ``start`` to ``end`` over ``duration`` steps, then stay at ``end``.

    Args:
        step: Environment steps so far.
        start: Value at step 0.
        end: Value from step ``duration`` on.
        duration: Length of the schedule in environment steps; 0 returns ``end`` from the first step.

    Returns:
        The value at ``step``.
    """
    if step >= duration:
        return end
    return start + (end - start) * step / duration


def epsilon_greedy(q_values: Tensor, epsilon: float | Tensor) -> Tensor:
    """Choose the greedy action, or with probability ``epsilon`` a uniformly random one, for each row.

    Args:
        q_values: Action values, ``(num_envs, num_actions)``.
        epsilon: Probability of a random action, which may be the greedy one; a tensor ``()`` in a CUDA graph.

    Returns:
        Action indices, ``(num_envs,)``.
    """
    greedy = q_values.argmax(-1)
    if not isinstance(epsilon, Tensor) and epsilon == 0:
        return greedy
    explore = torch.rand_like(greedy, dtype=torch.float32) < epsilon
    return torch.where(explore, torch.randint_like(greedy, q_values.shape[-1]), greedy)
