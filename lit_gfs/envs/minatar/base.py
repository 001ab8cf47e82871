"""The options, boards and pictures that all games of MinAtar share."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torchrl.data import Binary

from lit_gfs.envs.action_specs import discrete_action
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.envs.minatar.game import SIZE
from lit_gfs.envs.minatar.pictures import PICTURE
from lit_gfs.errors import require_between


class MinAtarGames(BatchedEnv):
    """Games by the protocol of Young and Tian (2019): sticky actions and rising difficulty.

    Observations are boards of 10 x 10 with a channel for each kind of object: ``(num_envs, channels, 10,
    10)`` bool.

    Args:
        env_id: ``MinAtar/<Game>-v1``, with the actions that do something in the game, or ``-v0``, with all
            six.
        num_envs: Number of games.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels`` in color, ``(num_envs, 160, 160, 3)``.
        sticky_action_prob: Probability that a step repeats the previous action and ignores the new one.
        difficulty_ramping: Whether the game becomes harder over time, where it can.
        max_episode_steps: Steps after which an episode is truncated. ``None`` sets no limit, like the
            ``minatar`` package: the game of an agent that never loses then never ends.

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
        channels, num_actions = self._load_games(env_id, num_envs, sticky_action_prob, difficulty_ramping)
        board = Binary(shape=(num_envs, channels, SIZE, SIZE), dtype=torch.bool)
        action = discrete_action(num_actions, num_envs)
        picture_shape = PICTURE if render else None
        super().__init__(env_id, num_envs, {"observation": board}, action, 1, seed, picture_shape)
        self._renders = render
        self._limit = math.inf if max_episode_steps is None else max_episode_steps

    @abstractmethod
    def _load_games(
        self, env_id: str, num_envs: int, sticky_action_prob: float, difficulty_ramping: bool
    ) -> tuple[int, int]:
        """Load the games; return their number of channels and of actions."""

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated."""
        return None if math.isinf(self._limit) else int(self._limit)
