"""MinAtar's games as tensors on any device."""

from __future__ import annotations

from typing import Any

from lit_gfs.envs.tensor.asterix import Asterix
from lit_gfs.envs.tensor.boards import BoardGame
from lit_gfs.envs.tensor.breakout import Breakout
from lit_gfs.envs.tensor.env import TensorEnv
from lit_gfs.envs.tensor.freeway import Freeway
from lit_gfs.envs.tensor.seaquest import Seaquest
from lit_gfs.envs.tensor.space_invaders import SpaceInvaders
from lit_gfs.errors import require_between

GAMES: dict[str, type[BoardGame[Any]]] = {
    "Asterix": Asterix,
    "Breakout": Breakout,
    "Freeway": Freeway,
    "Seaquest": Seaquest,
    "SpaceInvaders": SpaceInvaders,
}
"""The games by the name in their id."""


class TensorMinAtarEnv(TensorEnv):
    """One of MinAtar's games as tensors on any device, with the options of `lit_gfs.envs.minatar.base`.

    Args:
        env_id: ``tensor/MinAtar/<Game>-v1``, with the actions that do something in the game, or ``-v0``, with
            all six.
        num_envs: Number of games.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels`` in color, ``(num_envs, 160, 160, 3)``.
        sticky_action_prob: Probability that a step repeats the previous action and ignores the new one.
        difficulty_ramping: Whether the game becomes harder over time, where it can.
        max_episode_steps: Steps after which an episode is truncated; ``None`` sets no limit.

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
        name, version = env_id.rpartition("/")[2].split("-")
        game = GAMES[name](difficulty_ramping)
        super().__init__(
            env_id,
            num_envs,
            game,
            game.minimal_actions if version == "v1" else range(6),
            sticky_action_prob=sticky_action_prob,
            time_limit=max_episode_steps,
            seed=seed,
            render=render,
        )
