"""Exploration: random actions, and how often they are drawn.

A schedule is a function of the environment-step count alone, so that a resumed run goes on where it was.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_schedule(step: int, start: float, end: float, duration: int) -> float:
    """Go from ``start`` to ``end`` in a straight line, then stay.

    Args:
        step: Environment steps so far.
        start: Value at step 0.
        end: Value from ``duration`` on.
        duration: Length of the line in environment steps; 0 gives ``end`` at once.

    Returns:
        The value at ``step``.
    """
    if step >= duration:
        return end
    return start + (end - start) * step / duration


def epsilon_greedy(q_values: Tensor, epsilon: float) -> Tensor:
    """Choose the best action, or with probability ``epsilon`` any; every row draws for itself.

    Args:
        q_values: Action values, ``(num_envs, num_actions)``.
        epsilon: Probability of a draw from all actions, the best among them.

    Returns:
        Indices of actions, ``(num_envs,)``.
    """
    greedy = q_values.argmax(-1)
    if epsilon == 0:
        return greedy
    explore = torch.rand_like(greedy, dtype=torch.float32) < epsilon
    return torch.where(explore, torch.randint_like(greedy, q_values.shape[-1]), greedy)
