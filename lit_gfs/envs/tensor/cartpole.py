"""CartPole in tensors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gfs.envs.tensor.env import TensorEnv
from lit_gfs.envs.tensor.game import TensorGame
from lit_gfs.envs.tensor.host_pictures import gymnasium_pictures

_GRAVITY = 9.8
_TOTAL_MASS = 1.1
_POLE_MASS = 0.1
_HALF_LENGTH = 0.5
_MOMENT = _POLE_MASS * _HALF_LENGTH
_FORCE = 10.0
_SECONDS = 0.02
"""Simulated time of a step."""
_FURTHEST = 2.4
_STEEPEST = 12 * 2 * math.pi / 360


class Poles(NamedTuple):
    """The state of every pole."""

    values: Tensor
    """Position, velocity, angle and rate, ``(num_envs, 4)`` float64."""


class CartPole(TensorGame[Poles]):
    """Gymnasium's `CartPoleVectorEnv`: the same equations in the same order and in double precision.

    Sines and cosines may differ from NumPy's in their last bit.

    Args:
        sutton_barto_reward: Whether a fall has a reward of -1 and other steps 0, in place of 1 for each step.
    """

    observation_shape = (4,)
    observation_dtype = torch.float32
    picture_shape = (400, 600, 3)
    opening_draws = 4

    def __init__(self, sutton_barto_reward: bool = False) -> None:
        self._sutton_barto_reward = sutton_barto_reward

    def opening(self, draws: Tensor) -> Poles:
        """Begin near the upright position."""
        return Poles(-0.05 + 0.1 * draws)

    def step(self, state: Poles, action: Tensor, draws: Tensor) -> tuple[Poles, Tensor, Tensor]:
        """Push the carts left (0) or right (1); see `lit_gfs.envs.cartpole` for the equations."""
        _, velocity, angle, rate = state.values.unbind(1)
        force = _FORCE * (2.0 * action.double() - 1.0)
        cosine, sine = angle.cos(), angle.sin()
        push = (force + _MOMENT * rate.square() * sine) / _TOTAL_MASS
        spin = (_GRAVITY * sine - cosine * push) / (
            _HALF_LENGTH * (4.0 / 3.0 - _POLE_MASS * cosine.square() / _TOTAL_MASS)
        )
        pull = push - _MOMENT * spin * cosine / _TOTAL_MASS
        values = state.values + _SECONDS * torch.stack([velocity, pull, rate, spin], 1)
        over = (values[:, 0].abs() > _FURTHEST) | (values[:, 2].abs() > _STEEPEST)
        reward = -over.double() if self._sutton_barto_reward else torch.ones_like(push)
        return Poles(values), reward, over

    def show(self, state: Poles) -> Tensor:
        """Show the state in single precision."""
        return state.values.float()

    def pictures(self, state: Poles) -> Tensor:
        """Have gymnasium paint the state."""
        return gymnasium_pictures("CartPole-v1", state.values)


class TensorCartPoleEnv(TensorEnv):
    """CartPole as tensors on any device.

    Args:
        env_id: ``tensor/CartPole-v1``.
        num_envs: Number of poles.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels``, ``(num_envs, 400, 600, 3)``.
        sutton_barto_reward: Whether a fall has a reward of -1 and other steps 0, in place of 1 for each step.
        max_episode_steps: Steps after which an episode is truncated.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        render: bool = False,
        sutton_barto_reward: bool = False,
        max_episode_steps: int = 500,
    ) -> None:
        game: TensorGame[Any] = CartPole(sutton_barto_reward)
        super().__init__(
            env_id, num_envs, game, range(2), time_limit=max_episode_steps, seed=seed, render=render
        )
