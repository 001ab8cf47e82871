"""MinAtar's Seaquest, as the ``minatar`` package plays it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrl.data import Binary

from lit_gfs.envs.base import discrete_action
from lit_gfs.envs.minatar.game import SIZE, STAY
from lit_gfs.envs.minatar.pictures import PICTURE, pictures
from lit_gfs.envs.serial import SerialEnv
from lit_gfs.errors import UserError, require_between

_CHANNELS = 10
_ACTIONS = 6


class SeaquestEnv(SerialEnv):
    """Copies of the package's game, one after the other: its lists of things at sea make no arrays.

    Everything else is as with `lit_gfs.envs.minatar.MinAtarEnv`, but for the generators: each copy has its
    own. All six actions do something in this game, so ``-v0`` and ``-v1`` are the same.

    Args:
        env_id: ``MinAtar/Seaquest-v1`` or ``-v0``.
        num_envs: Number of games.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels`` in color, ``(num_envs, 160, 160, 3)``.
        sticky_action_prob: How likely a step repeats the previous action and ignores the new one.
        difficulty_ramping: Whether enemies become faster, and more, whenever the submarine comes up.
        max_episode_steps: Steps after which an episode is truncated; ``None`` never does that.

    Raises:
        UserError: If an option is out of range, or the package is not installed.
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
        try:
            from minatar import Environment
        except ImportError as error:
            raise UserError(
                f"{env_id!r} needs the package minatar ({error}); run: pip install 'lit-gfs[minatar]'"
            ) from error
        shape = (num_envs, _CHANNELS, SIZE, SIZE)
        super().__init__(
            env_id,
            num_envs,
            Binary(shape=shape, dtype=torch.bool),
            discrete_action(_ACTIONS, num_envs),
            1,
            seed,
            PICTURE if render else None,
        )
        self._simulators = [
            Environment("seaquest", sticky_action_prob, difficulty_ramping) for _ in range(num_envs)
        ]
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._limit = math.inf if max_episode_steps is None else max_episode_steps

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated."""
        return None if math.isinf(self._limit) else int(self._limit)

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
