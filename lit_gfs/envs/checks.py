"""Checks of observations and rewards: one that is not finite would ruin every network that learns from it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_gfs.envs.episodes import Arrays
from lit_gfs.errors import EnvironmentFault

HUGE_REWARD = 1e15
"""Rewards of this size cause a warning: sums of their squares, as in losses, soon exceed float32."""

_warned_of_rewards: set[str] = set()
"""Ids of environments whose huge rewards have caused a warning in this process."""


def require_finite(env_id: str, observations: Arrays, names: Iterable[str]) -> None:
    """Check observations.

    Args:
        env_id: The environment.
        observations: By name, ``(num_envs, *shape)``.
        names: The observations of floating point.

    Raises:
        EnvironmentFault: If a value is not finite.
    """
    for name in names:
        values = observations[name]
        # A sum takes half as long as a look at every value, and is not finite if one of them is not.
        if math.isfinite(np.add.reduce(values, axis=None, dtype=np.float64)):
            continue
        is_finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not is_finite.all():
            index = int(np.argmin(is_finite))
            raise EnvironmentFault(env_id, index, "showed an observation that is not finite")


def are_ordinary(reward: NDArray[Any]) -> bool:
    """Say whether rewards ``(num_envs,)`` are finite and far from the limits of float32."""
    # One sum is quicker than a look at every reward. The comparison is false if one of them is NaN.
    return np.dot(reward, reward) < HUGE_REWARD**2


def require_usable(env_id: str, reward: NDArray[Any], lengths: NDArray[np.int64]) -> None:
    """Check rewards that are not ordinary; warn of a huge one, once for each environment and process.

    Args:
        env_id: The environment.
        reward: ``(num_envs,)``.
        lengths: Steps of each episode before this one, ``(num_envs,)``.

    Raises:
        EnvironmentFault: If a reward is not finite in float32.
    """
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(reward.astype(np.float32))
    index = int(np.argmin(is_finite))
    if not is_finite[index]:
        step = lengths[index] + 1
        what = f"gave a reward of {reward[index]} in step {step:,} of its episode"
        raise EnvironmentFault(env_id, index, what)
    index = int(np.argmax(np.abs(reward)))
    if abs(reward[index]) >= HUGE_REWARD and env_id not in _warned_of_rewards:
        _warned_of_rewards.add(env_id)
        warnings.warn(
            f"environment {index} of {env_id} gave a reward of {reward[index]:g}, too large for "
            "losses in float32, which square it; choose a model.reward_scale that brings it to about 1",
            stacklevel=2,
        )
