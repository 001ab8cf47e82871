"""Exploration: epsilon-greedy actions, the schedule of epsilon, and noise on continuous actions.

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
        return float(end)  # a CUDA graph takes numbers as float tensors
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


def epsilon_uniform(action: Tensor, low: Tensor, high: Tensor, epsilon: float | Tensor) -> Tensor:
    """Replace each row, with probability ``epsilon``, by an action that is uniform between the bounds.

    Args:
        action: Continuous actions of the policy, ``(num_envs, dim)``.
        low: Smallest action, ``(dim,)``.
        high: Largest action, ``(dim,)``.
        epsilon: Probability of a random action; a tensor ``()`` in a CUDA graph.

    Returns:
        Actions, ``(num_envs, dim)``.
    """
    # Draws do not depend on epsilon, so that a CUDA graph, which cannot skip them, draws the same.
    explore = torch.rand_like(action[:, :1]) < epsilon
    return torch.where(explore, low + (high - low) * torch.rand_like(action), action)


def noisy_action(action: Tensor, low: Tensor, high: Tensor, std: float, largest: float = torch.inf) -> Tensor:
    """Add Gaussian noise to continuous actions, and keep them between their bounds.

    TD3 explores with it, and adds it, clipped, to the target policy's actions, so that values of similar
    actions are similar (Fujimoto et al. 2018, arXiv 1802.09477, eq. 14).

    Args:
        action: Actions, ``(*batch, dim)``.
        low: Smallest action, ``(dim,)``.
        high: Largest action, ``(dim,)``.
        std: Standard deviation of the noise, in halves of the distance of the bounds.
        largest: Largest absolute noise, in the same unit.

    Returns:
        Actions, ``(*batch, dim)``.
    """
    noise = (std * torch.randn_like(action)).clamp(-largest, largest)
    return (action + (high - low) / 2 * noise).clamp(low, high)
