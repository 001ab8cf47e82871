"""A batch of MinAtar games as one TorchRL environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_gfs.envs.episodes import Arrays, Outcome
from lit_gfs.envs.minatar.asterix import Asterix
from lit_gfs.envs.minatar.base import MinAtarGames
from lit_gfs.envs.minatar.breakout import Breakout
from lit_gfs.envs.minatar.freeway import Freeway
from lit_gfs.envs.minatar.game import STAY, Game, State
from lit_gfs.envs.minatar.pictures import pictures
from lit_gfs.envs.minatar.space_invaders import SpaceInvaders
from lit_gfs.utils.seeding import generator_state, set_generator_state

BATCHED_GAMES: dict[str, type[Game]] = {
    "Asterix": Asterix,
    "Breakout": Breakout,
    "Freeway": Freeway,
    "SpaceInvaders": SpaceInvaders,
}
"""The games that are stepped all at once, by the name in their id."""


class MinAtarEnv(MinAtarGames):
    """All boards of a game in arrays, stepped at once.

    The arguments are those of `MinAtarGames`. The ``minatar`` package is not needed; given the same random
    numbers, its games are equal step for step. One generator draws for all boards. As in that package, sticky
    actions ignore the ends of episodes: the last action of one may replace the first action of the next.
    """

    def _load_games(
        self, env_id: str, num_envs: int, sticky_action_prob: float, difficulty_ramping: bool
    ) -> tuple[int, int]:
        name, version = env_id.removeprefix("MinAtar/").split("-")
        game = BATCHED_GAMES[name](difficulty_ramping)
        self._game = game
        self._actions = np.array(game.minimal_actions if version == "v1" else range(6))
        self._stickiness = sticky_action_prob
        self._generator = np.random.default_rng()
        self._state: State = {}
        """Everything that the games remember, without the generator."""
        return len(game.channels), len(self._actions)

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
        if len(indices) == self.num_envs:
            self._state |= opening
        else:
            for name, values in opening.items():
                self._state[name][indices] = values
        return self._show(opening)

    def _save_simulators(self) -> dict[str, Any]:
        return {
            "state": {name: torch.from_numpy(values.copy()) for name, values in self._state.items()},
            "generator": generator_state(self._generator),
        }

    def _load_simulators(self, state: dict[str, Any]) -> None:
        self._state = {name: values.numpy().copy() for name, values in state["state"].items()}
        set_generator_state(self._generator, state["generator"])
        self._episodes.observations = self._show(self._state)
        self._episodes.lengths = self._state["steps"]

    def _draw(self, rows: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        return self._generator.random((len(rows), count))

    def _show(self, state: State) -> Arrays:
        boards = self._game.show(state)
        return (
            {"observation": boards, "pixels": pictures(boards)} if self._renders else {"observation": boards}
        )
