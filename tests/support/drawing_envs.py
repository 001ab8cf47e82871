"""CartPole that draws from shared generators: ``--data.env_id support.drawing_envs:Drawing-v0``."""

from __future__ import annotations

import random
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class Drawing(CartPoleEnv):
    """Pays the sum of a number from ``random`` and one from ``numpy.random``."""

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        reward = random.random() + np.random.random()  # noqa: NPY002
        return observation, reward, terminated, truncated, info


gymnasium.register("Drawing-v0", entry_point="support.drawing_envs:Drawing", max_episode_steps=50)
