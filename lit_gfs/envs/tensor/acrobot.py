"""Acrobot in tensors."""

from __future__ import annotations

from math import pi
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gfs.envs.tensor.env import TensorEnv
from lit_gfs.envs.tensor.game import TensorGame
from lit_gfs.envs.tensor.host_pictures import gymnasium_pictures

# Both links have length 1, mass 1, moment of inertia 1, and their center of mass in the middle.
_CENTER = 0.5
_GRAVITY = 9.8
_SECONDS = 0.2
"""Simulated time of a step."""
_FASTEST = (4 * pi, 9 * pi)
"""Bounds of the two rates."""


class Links(NamedTuple):
    """The state of every pair of links."""

    values: Tensor
    """Angle of the first link, angle between the links, and the two rates, ``(num_envs, 4)`` float64."""


class Acrobot(TensorGame[Links]):
    """Gymnasium's `AcrobotEnv`, with the equations of Sutton and Barto's book: swing the tip up.

    A step has a reward of -1, the one that ends the game has 0. The operations are gymnasium's, in the same
    order and in double precision. Sines and cosines may differ from NumPy's in their last bit.
    """

    observation_shape = (6,)
    observation_dtype = torch.float32
    picture_shape = (500, 500, 3)
    opening_draws = 4

    def opening(self, draws: Tensor) -> Links:
        """Begin near the hanging position, rounded to single precision as gymnasium does."""
        return Links((-0.1 + 0.2 * draws).float().double())

    def step(self, state: Links, action: Tensor, draws: Tensor) -> tuple[Links, Tensor, Tensor]:
        """Apply a torque of -1, 0 or 1 between the links, by one Runge-Kutta step of fourth order."""
        torque, start = action.double() - 1.0, state.values
        slope1 = _slope(start, torque)
        slope2 = _slope(start + _SECONDS / 2 * slope1, torque)
        slope3 = _slope(start + _SECONDS / 2 * slope2, torque)
        slope4 = _slope(start + _SECONDS * slope3, torque)
        moved = start + _SECONDS / 6.0 * (slope1 + 2 * slope2 + 2 * slope3 + slope4)
        first, second = _wrapped(moved[:, :2]).unbind(1)
        rates = (moved[:, 2 + link].clamp(-most, most) for link, most in enumerate(_FASTEST))
        over = -first.cos() - (second + first).cos() > 1.0
        return Links(torch.stack([first, second, *rates], 1)), over.double() - 1.0, over

    def show(self, state: Links) -> Tensor:
        """Show cosine and sine of both angles, and the rates."""
        angles = state.values[:, :2]
        turns = torch.stack([angles.cos(), angles.sin()], 2).flatten(1)
        return torch.cat([turns, state.values[:, 2:]], 1).float()

    def pictures(self, state: Links) -> Tensor:
        """Have gymnasium paint the state."""
        return gymnasium_pictures("Acrobot-v1", state.values)


def _slope(values: Tensor, torque: Tensor) -> Tensor:
    """Return the derivatives of `Links.values` with respect to time, ``(num_envs, 4)``."""
    first, second, first_rate, second_rate = values.unbind(1)
    cosine, sine = second.cos(), second.sin()
    inertia1 = _CENTER**2 + (1.0 + _CENTER**2 + 2 * _CENTER * cosine) + 2.0
    inertia2 = _CENTER**2 + _CENTER * cosine + 1.0
    weight2 = _CENTER * _GRAVITY * (first + second - pi / 2.0).cos()
    weight1 = (
        -_CENTER * second_rate.square() * sine
        - 2 * _CENTER * second_rate * first_rate * sine
        + (_CENTER + 1.0) * _GRAVITY * (first - pi / 2).cos()
        + weight2
    )
    second_change = (
        torque + inertia2 / inertia1 * weight1 - _CENTER * first_rate.square() * sine - weight2
    ) / (_CENTER**2 + 1.0 - inertia2.square() / inertia1)
    first_change = -(inertia2 * second_change + weight1) / inertia1
    return torch.stack([first_rate, second_rate, first_change, second_change], 1)


def _wrapped(angle: Tensor) -> Tensor:
    """Bring angles back to [-pi, pi] by whole turns, which gymnasium subtracts one after the other."""
    turns = ((angle.abs() - pi) / (2 * pi)).ceil().clamp(min=0)
    return angle - angle.sign() * (2 * pi * turns)


class TensorAcrobotEnv(TensorEnv):
    """Acrobot as tensors on any device.

    Args:
        env_id: ``tensor/Acrobot-v1``.
        num_envs: Number of pairs of links.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels``, ``(num_envs, 500, 500, 3)``.
        max_episode_steps: Steps after which an episode is truncated.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        render: bool = False,
        max_episode_steps: int = 500,
    ) -> None:
        game: TensorGame[Any] = Acrobot()
        super().__init__(
            env_id, num_envs, game, range(3), time_limit=max_episode_steps, seed=seed, render=render
        )
