"""An environment whose steps take as long as those of a slow simulator: CartPole, with a pause in each."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class SlowCartPole(CartPoleEnv):
    """CartPole whose steps pause.

    Args:
        seconds: The pause in each step.
        options: As for gymnasium's CartPole.
    """

    def __init__(self, seconds: float = 0.01, **options: Any) -> None:
        super().__init__(**options)
        self.seconds = seconds

    def step(self, action: Any) -> Any:
        """Pause, and step."""
        time.sleep(self.seconds)
        return super().step(action)


gymnasium.register("Slow-v0", SlowCartPole, max_episode_steps=500)
