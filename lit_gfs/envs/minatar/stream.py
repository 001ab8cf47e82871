"""Games of MinAtar by turns, as one environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lit_gfs.envs.episodes import Arrays
from lit_gfs.envs.minatar.env import BATCHED_GAMES, MinAtarEnv
from lit_gfs.envs.minatar.game import SIZE, STAY, Game, State
from lit_gfs.envs.task_stream import TaskStream
from lit_gfs.errors import UserError, nearest


class MinAtarStream(TaskStream, MinAtarEnv):
    """Several games of MinAtar by turns: ``MinAtar/Stream-v0``.

    All games have the six actions, and boards with as many channels as the game with most of them; further
    channels of a game stay empty. So one network can play all of them.

    Args:
        env_id: ``MinAtar/Stream-v0``.
        num_envs: Number of games that are played together; all play the same game.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels``, as in `MinAtarGames`.
        games: Names of the games, in order, such as ``Breakout``; after the last comes the first.
        switch_every: Environment steps of the run between two switches, see `TaskStream`.
        sticky_action_prob: As in `MinAtarGames`.
        difficulty_ramping: As in `MinAtarGames`.
        max_episode_steps: As in `MinAtarGames`.

    Raises:
        UserError: If a game is unknown, or an option is out of range.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        render: bool = False,
        games: str | Sequence[str] = ("Breakout", "Freeway", "SpaceInvaders", "Asterix"),
        switch_every: int = 500_000,
        sticky_action_prob: float = 0.1,
        difficulty_ramping: bool = True,
        max_episode_steps: int | None = 10_000,
    ) -> None:
        names = (games,) if isinstance(games, str) else tuple(games)
        for name in names:
            if name not in BATCHED_GAMES:
                raise UserError(
                    f"games has {name!r}; expected {', '.join(BATCHED_GAMES)}{nearest(name, BATCHED_GAMES)}"
                )
        TaskStream.__init__(self, names, switch_every)
        MinAtarEnv.__init__(
            self,
            env_id,
            num_envs,
            seed=seed,
            render=render,
            sticky_action_prob=sticky_action_prob,
            difficulty_ramping=difficulty_ramping,
            max_episode_steps=max_episode_steps,
        )

    @override
    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        self._game = self._games[task]
        # The state of the other game is of no use; the reset that follows makes a new one.
        self._state: State = {"last_action": np.full(self.num_envs, STAY)}

    @override
    def _load_games(
        self, env_id: str, num_envs: int, sticky_action_prob: float, difficulty_ramping: bool
    ) -> tuple[int, int]:
        games: list[Game] = [BATCHED_GAMES[name](difficulty_ramping) for name in self.tasks]
        self._games = games
        self._channels = max(len(game.channels) for game in games)
        _, num_actions = super()._load_games(
            f"MinAtar/{self.tasks[0]}-v0", num_envs, sticky_action_prob, difficulty_ramping
        )
        return self._channels, num_actions

    @override
    def _save_simulators(self) -> dict[str, Any]:
        return {**super()._save_simulators(), "task": self.task}

    @override
    def _load_simulators(self, state: dict[str, Any]) -> None:
        self.begin_task(state["task"])
        super()._load_simulators(state)

    @override
    def _show(self, state: State) -> Arrays:
        shown = super()._show(state)
        return {**shown, "observation": self._padded(shown["observation"])}

    def _padded(self, boards: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Add empty channels to boards ``(boards, channels, 10, 10)``."""
        count, channels = boards.shape[:2]
        padded = np.zeros((count, self._channels, SIZE, SIZE), dtype=np.bool_)
        padded[:, :channels] = boards
        return padded
