"""Environments with odd spaces and habits: ``--data.env_id support.odd_envs:OddSwitches-v0``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

VECTOR = spaces.Box(-1, 1, (2,), np.float32)
TWO = spaces.Discrete(2)


class Odd(gymnasium.Env[Any, Any]):
    """Episodes of six steps that show and pay what they are told to.

    Args:
        observation: Space of observations, drawn at random.
        action: Space of actions.
        show: What is shown instead, given the space.
        pay: The reward of each step, given its number and the action.
        fold: What becomes of a step's five values.
    """

    def __init__(
        self,
        observation: Any = VECTOR,
        action: Any = TWO,
        show: Callable[[Any], Any] | None = None,
        pay: Callable[[int, Any], Any] = lambda number, action: 1.0,
        fold: Callable[..., Any] = lambda *values: values,
        render_mode: Any = None,
    ) -> None:
        self.observation_space, self.action_space = observation, action
        self._show = show or (lambda space: space.sample())
        self._pay, self._fold = pay, fold
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        if seed is not None:
            self.observation_space.seed(seed)
        return self._show(self.observation_space), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.actions.append(action)
        shown = self._show(self.observation_space)
        return self._fold(shown, self._pay(self.steps, action), self.steps >= 6, False, {})


KINDS: dict[str, dict[str, Any]] = {
    "Plain": {},
    "Choices": {"action": spaces.MultiDiscrete([4, 2, 3])},
    "Switches": {"action": spaces.MultiBinary([2, 2])},
    "Free": {"action": spaces.Box(-np.inf, np.inf, (3,), np.float32)},
    "Table": {"action": spaces.Box(-2, 1, (2, 3), np.float64)},
    "Inventory": {"observation": spaces.Dict(bag=spaces.MultiBinary(3), place=spaces.Discrete(4))},
    "Picture": {"observation": spaces.Box(0, 255, (36, 36, 3), np.uint8)},
    "Nan": {"pay": lambda number, action: float("nan") if number == 4 else 0.0},
    "Narrow": {"show": lambda space: np.zeros(1, np.float32)},
    "Huge": {"pay": lambda number, action: 2e38},
}

for name, options in KINDS.items():
    gymnasium.register(f"Odd{name}-v0", Odd, kwargs=options)
gymnasium.register("Odd-v0", Odd)
