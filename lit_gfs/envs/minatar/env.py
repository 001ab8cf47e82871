"""A batch of MinAtar games as one TorchRL environment."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrl.data import Binary, Unbounded

from lit_gfs.envs.base import Arrays, BatchedEnv, Outcome, discrete_action
from lit_gfs.envs.minatar.asterix import Asterix
from lit_gfs.envs.minatar.breakout import Breakout
from lit_gfs.envs.minatar.freeway import Freeway
from lit_gfs.envs.minatar.game import SIZE, STAY, Game, State
from lit_gfs.envs.minatar.pictures import PICTURE, pictures
from lit_gfs.envs.minatar.space_invaders import SpaceInvaders
from lit_gfs.errors import require_between
from lit_gfs.utils.seeding import generator_state, set_generator_state

BATCHED_GAMES: dict[str, type[Game]] = {
    "Asterix": Asterix,
    "Breakout": Breakout,
    "Freeway": Freeway,
    "SpaceInvaders": SpaceInvaders,
}
"""The games that are stepped all at once, by the name in their id."""


class MinAtarEnv(BatchedEnv):
    """Games by the protocol of Young and Tian (2019): sticky actions, and a difficulty that rises.

    Observations are boards of 10 x 10, a channel for each kind of thing: ``(num_envs, channels, 10, 10)``
    bool. The ``minatar`` package is not needed; given the same random numbers, its games are equal step for
    step. One generator draws for all boards. Sticky actions know of no episodes: the last action of one may
    replace the first action of the next, as in that package.

    Args:
        env_id: ``MinAtar/<Game>-v1``, with the actions that do something in it, or ``-v0``, with all six.
        num_envs: Number of games.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels`` in color, ``(num_envs, 160, 160, 3)``.
        sticky_action_prob: How likely a step repeats the previous action and ignores the new one.
        difficulty_ramping: Whether the game becomes harder over time, where it can.
        max_episode_steps: Steps after which an episode is truncated. The package has no limit; ``None`` has
            none either, and the game of an agent that never loses then never ends.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        render: bool = False,
        sticky_action_prob: float = 0.1,
        difficulty_ramping: bool = True,
        max_episode_steps: int | None = 10_000,
    ) -> None:
        require_between(0, 1, sticky_action_prob=sticky_action_prob)
        name, version = env_id.removeprefix("MinAtar/").split("-")
        game = BATCHED_GAMES[name](difficulty_ramping)
        actions = game.minimal_actions if version == "v1" else range(6)
        shape = (num_envs, len(game.channels), SIZE, SIZE)
        observations: dict[str, Any] = {"observation": Binary(shape=shape, dtype=torch.bool)}
        if render:
            observations["pixels"] = Unbounded((num_envs, *PICTURE), dtype=torch.uint8)
        super().__init__(env_id, num_envs, observations, discrete_action(len(actions), num_envs), 1, seed)
        self._game = game
        self._actions = np.array(actions)
        self._stickiness = sticky_action_prob
        self._limit = math.inf if max_episode_steps is None else max_episode_steps
        self._renders = render
        self._generator = np.random.default_rng()
        self._state: State = {}
        """All that the games remember, but for the generator."""

    def _simulate(self, action: NDArray[Any]) -> Outcome:
        if action.min() < 0 or action.max() >= len(self._actions):
            raise ValueError(
                f"actions go from {action.min()} to {action.max()}; there are {len(self._actions)}"
            )
        state = self._state
        sticks = self._draw(np.arange(self.num_envs), 1)[:, 0] < self._stickiness
        state["last_action"] = np.where(sticks, state["last_action"], self._actions[action])
        state["steps"] = state["steps"] + 1
        reward, terminated = self._game.step(state, state["last_action"], self._draw)
        truncated = state["steps"] >= self._limit
        return Outcome(self._show(state), reward.astype(np.float32), terminated, truncated)

    def _restart(self, indices: NDArray[np.int64], seed: int | None) -> Arrays:
        if seed is not None:
            self._generator = np.random.default_rng(seed)
            self._state = {"last_action": np.full(self.num_envs, STAY)}
        opening = {**self._game.opening(indices, self._draw), "steps": np.zeros(len(indices), np.int64)}
        if seed is not None:
            self._state |= opening
        else:
            for name, values in opening.items():
                self._state[name][indices] = values
        return self._show(opening)

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated."""
        return None if math.isinf(self._limit) else int(self._limit)

    def _save_simulators(self) -> dict[str, Any]:
        return {
            "state": {name: torch.from_numpy(values.copy()) for name, values in self._state.items()},
            "generator": generator_state(self._generator),
        }

    def _load_simulators(self, state: dict[str, Any]) -> None:
        self._state = {name: values.numpy().copy() for name, values in state["state"].items()}
        set_generator_state(self._generator, state["generator"])
        self._episodes.shown = self._show(self._state)
        self._episodes.lengths = self._state["steps"]

    def _draw(self, rows: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        return self._generator.random((len(rows), count))

    def _show(self, state: State) -> Arrays:
        shown = self._game.show(state)
        return {"observation": shown, "pixels": pictures(shown)} if self._renders else {"observation": shown}
