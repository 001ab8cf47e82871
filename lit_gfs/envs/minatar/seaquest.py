"""MinAtar's Seaquest, as the ``minatar`` package plays it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_gfs.envs.minatar.base import MinAtarGames
from lit_gfs.envs.minatar.game import STAY
from lit_gfs.envs.minatar.pictures import pictures
from lit_gfs.envs.serial import SerialEnv
from lit_gfs.errors import UserError

_CHANNELS = 10
_ACTIONS = 6


class SeaquestEnv(MinAtarGames, SerialEnv):
    """Copies of the package's game, one after the other: its lists of objects do not fit into arrays.

    The arguments are those of `MinAtarGames`. Each copy has a generator of its own. All six actions do
    something in this game, so ``-v0`` and ``-v1`` are the same. Enemies become faster, and more, whenever the
    submarine surfaces.

    Raises:
        UserError: If an option is out of range, or the package is not installed.
    """

    def _load_games(
        self, env_id: str, num_envs: int, sticky_action_prob: float, difficulty_ramping: bool
    ) -> tuple[int, int]:
        try:
            from minatar import Environment
        except ImportError as error:
            raise UserError(
                f"{env_id!r} needs the package minatar ({error}); run: pip install 'lit-gfs[minatar]'"
            ) from error
        self._simulators = [
            Environment("seaquest", sticky_action_prob, difficulty_ramping) for _ in range(num_envs)
        ]
        self._steps = np.zeros(num_envs, dtype=np.int64)
        return _CHANNELS, _ACTIONS

    def _step_one(self, index: int, action: Any, observation: NDArray[Any]) -> tuple[float, bool, bool]:
        simulator = self._simulators[index]
        reward, terminated = simulator.act(action)
        self._steps[index] += 1
        observation[:] = simulator.state().transpose(2, 0, 1)
        return reward, terminated, bool(self._steps[index] >= self._limit)

    def _restart_one(self, index: int, seed: int | None, observation: NDArray[Any]) -> None:
        simulator = self._simulators[index]
        if seed is not None:
            simulator.seed(seed)
            simulator.last_action = STAY
        simulator.reset()
        self._steps[index] = 0
        observation[:] = simulator.state().transpose(2, 0, 1)

    def _render_one(self, index: int) -> NDArray[np.uint8]:
        return pictures(self._simulators[index].state().transpose(2, 0, 1)[None])[0]
