"""Returns: what values are trained towards, as pure functions of a rollout or a batch of transitions.

An episode can end in two ways. A *terminated* one has no future: nothing is bootstrapped. A *truncated* one
was merely cut off: its return bootstraps from the value of its true final observation. Both are *done*:
what follows in the rollout belongs to another episode and must not leak backwards.

All arguments of a call have one shape. Rollouts are ``(num_envs, T)`` or ``(num_envs, T, 1)``, time second.
``next_value[:, t]`` is the value of the observation that step t led to, the final one where the episode
ended, never that of the reset which follows.

The recursions are TorchRL's. Its vectorized variants cut small weights off (errors of 1e-6) and fail at
lambda 0, so the plain ones are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torchrl.objectives.value.functional import (
    generalized_advantage_estimate,
    td_lambda_return_estimate,
)


class FinalObservations(Protocol):
    """The observations that some steps of a rollout led to: a tensor, or what holds the final ones alone."""

    def __getitem__(self, steps: Tensor) -> Tensor:
        """Return the observations ``(m, *shape)`` that the steps of a mask ``(num_envs, T)`` led to."""


def td_target(reward: Tensor, next_value: Tensor, terminated: Tensor, gamma: float) -> Tensor:
    """Return the one-step temporal-difference target, r + gamma v(s') (Sutton & Barto 2018, eq. 6.2).

    Args:
        reward: Rewards, of any shape.
        next_value: Values of the states that followed.
        terminated: Whether the episode ended there for good, boolean.
        gamma: Discount per environment step.

    Returns:
        Targets of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(reward, next_value, terminated)
    return reward + gamma * next_value.masked_fill(terminated, 0)


def generalized_advantage(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float,
    lambda_: float,
) -> tuple[Tensor, Tensor]:
    """Return generalized advantage estimates (Schulman et al. 2016, eq. 16) and value targets.

    Args:
        reward: Rewards, ``(num_envs, T)`` or ``(num_envs, T, 1)``.
        value: Values of the states that were acted in.
        next_value: Values of the states that followed.
        done: Whether the episode ended, terminated or truncated, boolean.
        terminated: Whether it ended for good, boolean.
        gamma: Discount per environment step.
        lambda_: Decay of the weight on longer returns, from 0 (one step) to 1 (Monte Carlo).

    Returns:
        Advantages, and advantages plus values (the lambda-returns), of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(reward, value, next_value, done, terminated)
    advantage, _ = generalized_advantage_estimate(
        gamma,
        lambda_,
        *_as_columns(value, next_value.masked_fill(terminated, 0), reward, done, terminated),
    )
    advantage = advantage.view_as(value)
    return advantage, advantage + value


def lambda_return(
    reward: Tensor, next_value: Tensor, done: Tensor, terminated: Tensor, gamma: float, lambda_: float
) -> Tensor:
    """Return lambda-returns, G = r + gamma ((1 - lambda) v(s') + lambda G') (Sutton & Barto 2018, eq. 12.2).

    At the end of an episode, and of the rollout, v(s') takes the place of G'.

    Args:
        reward: Rewards, ``(num_envs, T)`` or ``(num_envs, T, 1)``.
        next_value: Values of the states that followed; in Q-learning their largest action value.
        done: Whether the episode ended, terminated or truncated, boolean.
        terminated: Whether it ended for good, boolean.
        gamma: Discount per environment step.
        lambda_: Weight of longer returns, from 0 (one step) to 1 (Monte Carlo).

    Returns:
        Returns of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(reward, next_value, done, terminated)
    returns = td_lambda_return_estimate(
        gamma, lambda_, *_as_columns(next_value.masked_fill(terminated, 0), reward, done, terminated)
    )
    return returns.view_as(reward)


def next_values(
    value: Tensor,
    next_observation: FinalObservations,
    done: Tensor,
    terminated: Tensor,
    value_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the values of the states that a rollout's steps led to, with as few evaluations as it takes.

    Within an episode the next state's value was computed when that state was acted in. Only the final
    observation of a truncated episode, and the one that each env's last step led to, were never acted in.

    Args:
        value: Values of the states that were acted in, ``(num_envs, T)``.
        next_observation: The observations that the steps led to, the true final ones where an episode ended,
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
        next_value[is_unknown] = value_of(next_observation[is_unknown])
    return next_value


def _as_columns(*tensors: Tensor) -> list[Tensor]:
    """Give rollouts the trailing dimension that TorchRL expects."""
    return [tensor.unsqueeze(-1) if tensor.ndim == 2 else tensor for tensor in tensors]


def _check_shapes(*tensors: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        raise ValueError(f"expected tensors of one shape, got {', '.join(map(str, shapes))}")
