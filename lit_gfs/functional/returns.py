"""Returns and advantages, as pure functions of a rollout or of a batch of transitions.

An episode ends in one of two ways. If it is *terminated*, there is no future, so its return does not
bootstrap. If it is *truncated*, it was cut off, so its return bootstraps from the value of its true final
observation. Both are *done*: the next step of the rollout belongs to another episode and must not contribute.

All arguments of a call have the same shape. Rollouts are ``(num_envs, T)`` or ``(num_envs, T, 1)``.
``next_value[:, t]`` is the value of the observation after step t: the final observation where the episode
ended, never the first observation after the reset.

TorchRL computes the recursions. Its vectorized variants drop small weights (errors of 1e-6) and fail at
lambda 0, so this module uses the plain ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.value.functional import (
    generalized_advantage_estimate,
    td_lambda_return_estimate,
)

from lit_gfs.errors import UserError
from lit_gfs.utils.transfers import send


class FinalObservations(Protocol):
    """The next observations of a rollout: a tensor, or an object that stores only the final ones."""

    def __getitem__(self, steps: Tensor) -> Tensor:
        """Return the next observations ``(m, *shape)`` of the steps selected by a mask ``(num_envs, T)``."""


def learner_reward(
    next_: TensorDictBase, scale: float = 1.0, clip: bool = False, end_of_life_is_terminal: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rewards and ends of episodes as the learner sees them; reported returns stay raw.

    Args:
        next_: The steps' outcome, ``(*batch,)``: ``reward``, ``done``, ``terminated`` and, with
            ``end_of_life_is_terminal``, ``end_of_life``, each ``(*batch, 1)``.
        scale: Factor on the rewards.
        clip: Whether rewards, once scaled, are clipped to [-1, 1].
        end_of_life_is_terminal: Whether a lost life ends the episode for the learner (Atari).

    Returns:
        Reward, done and terminated, ``(*batch,)`` each.

    Raises:
        UserError: If lost lives are to end episodes, and the environment reports none.
    """
    reward, done, terminated = (next_[key].squeeze(-1) for key in ("reward", "done", "terminated"))
    if scale != 1:
        reward = scale * reward
    if clip:
        reward = reward.clamp(-1, 1)
    if end_of_life_is_terminal:
        if "end_of_life" not in next_.keys():  # noqa: SIM118 - a TensorDict has no `in`
            raise UserError(
                "end_of_life_is_terminal is true, but the environment reports no lives; expected false, or "
                "an Atari game"
            )
        lost = next_["end_of_life"].squeeze(-1)
        done, terminated = done | lost, terminated | lost
    return reward, done, terminated


def n_step_return(
    next_: TensorDictBase,
    gamma: float,
    scale: float = 1.0,
    clip: bool = False,
    end_of_life_is_terminal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the discounted rewards of n steps, as the learner sees them, and how to bootstrap after them.

    The return is r_1 + gamma r_2 + ... + gamma^(k-1) r_k. It has fewer than n steps if the episode ends
    before, or if the memory has no further step of it yet (Sutton & Barto 2018, eq. 7.1). A lost life may
    count as the end of the episode; then the rewards after it do not count.

    Args:
        next_: The outcome of n steps in a row, ``(batch,)``: ``reward``, ``done``, ``terminated`` and, with
            ``end_of_life_is_terminal``, ``end_of_life``, each ``(batch, n)``, with 0 and false after step k.
            If n is more than 1, also the number ``steps`` of real steps k, ``(batch, 1)``.
        gamma: Discount per environment step.
        scale: Factor on the rewards.
        clip: Whether rewards, once scaled, are clipped to [-1, 1].
        end_of_life_is_terminal: Whether a lost life ends the episode for the learner (Atari).

    Returns:
        Return, whether the episode terminated within the steps, and the discount gamma^k of the value of the
        state after them, ``(batch,)`` each.
    """
    reward, _, terminated = learner_reward(next_, scale, clip, end_of_life_is_terminal)
    if reward.ndim == 1:
        return reward, terminated, torch.full_like(reward, gamma)
    # The steps after a terminal one do not count; that one itself does.
    counts = terminated.cumsum(-1) - terminated.long() == 0
    discounts = gamma ** torch.arange(reward.shape[-1], device=reward.device)
    discount = gamma ** next_["steps"].squeeze(-1)
    return (reward * discounts * counts).sum(-1), terminated.any(-1), discount


def td_target(reward: Tensor, next_value: Tensor, terminated: Tensor, gamma: float | Tensor) -> Tensor:
    """Return the temporal-difference target, r + gamma v(s') (Sutton & Barto 2018, eq. 6.2).

    Args:
        reward: Rewards, of any shape; those of several steps are summed, see `n_step_return`.
        next_value: Values of the next states.
        terminated: Whether the step terminated the episode, boolean.
        gamma: Discount of the next states' values: a number, or a tensor that broadcasts.

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
        value: Values of the states.
        next_value: Values of the next states.
        done: Whether the step ended the episode, terminated or truncated, boolean.
        terminated: Whether the step terminated the episode, boolean.
        gamma: Discount per environment step.
        lambda_: Decay of the weight on longer returns, from 0 (one step) to 1 (Monte Carlo).

    Returns:
        Advantages, and advantages plus values (the lambda-returns), of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(reward, value, next_value, done, terminated)
    # delta = r + gamma v(s') - v(s), backwards in time: A = delta + gamma lambda A' while not done.
    # TorchRL masks v(s') of terminated steps by a product, which would turn an infinite value into NaN.
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

    At the end of an episode, and at the end of the rollout, v(s') replaces G'.

    Args:
        reward: Rewards, ``(num_envs, T)`` or ``(num_envs, T, 1)``.
        next_value: Values of the next states; in Q-learning the largest action value.
        done: Whether the step ended the episode, terminated or truncated, boolean.
        terminated: Whether the step terminated the episode, boolean.
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
    """Return the values of a rollout's next states, with as few evaluations as possible.

    Within an episode, the value of the next state is the next entry of ``value``. Two kinds of observations
    still need an evaluation: the final one of a truncated episode, and the one after the rollout's last step.

    Args:
        value: Values of the states, ``(num_envs, T)``.
        next_observation: Next observations ``(num_envs, T, *shape)``, the true final one where an episode
            ended; only the final ones and those after the last step are read.
        done: Whether the step ended the episode, terminated or truncated, boolean ``(num_envs, T)``. Where
            the values are on another device, leave this and ``terminated`` on the CPU: they decide which
            observations are evaluated, and the host would have to wait for them.
        terminated: Whether the step terminated the episode, boolean ``(num_envs, T)``.
        value_of: Maps observations ``(n, *shape)``, on the device of ``value``, to values ``(n,)``.

    Returns:
        Values, ``(num_envs, T)``; the entries of terminated steps are meaningless.
    """
    # Shift by one step. The repeated last column is a placeholder.
    next_value = torch.cat([value[:, 1:], value[:, -1:]], dim=1)
    # A terminated step does not bootstrap, so its next value is never needed.
    is_unknown = done & ~terminated
    is_unknown[:, -1] = ~terminated[:, -1]
    env, time = is_unknown.nonzero(as_tuple=True)
    if len(env):
        at = send(env, value.device), send(time, value.device)
        next_value[at] = value_of(send(next_observation[is_unknown], value.device))
    return next_value


def _as_columns(*tensors: Tensor) -> list[Tensor]:
    """Add the trailing dimension that TorchRL expects to rollouts ``(num_envs, T)``."""
    return [tensor.unsqueeze(-1) if tensor.ndim == 2 else tensor for tensor in tensors]


def _check_shapes(*tensors: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        raise ValueError(f"expected tensors of one shape, got {', '.join(map(str, shapes))}")
