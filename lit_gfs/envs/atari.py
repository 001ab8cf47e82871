"""Atari games, stepped by ALE's own batched simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrl.data import Binary, Unbounded

from lit_gfs.envs.action_specs import discrete_action
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.envs.episodes import Arrays, Outcome
from lit_gfs.envs.simulators import env_seeds
from lit_gfs.envs.suites import Suite
from lit_gfs.errors import UserError, require_at_least, require_positive

FRAME_SKIP = 4
SCREEN = (210, 160)
"""Height and width of the screen of most games, in pixels."""

_TWO_PLAYER_GAMES = {"combat", "joust", "maze_craze", "warlords"}


def atari_games() -> dict[str, str]:
    """Map ``ALE/<Game>-v5`` to ALE's name of the game, for every game of one player."""
    from ale_py.registration import rom_id_to_name
    from ale_py.roms import get_all_rom_ids

    return {f"ALE/{rom_id_to_name(rom)}-v5": rom for rom in get_all_rom_ids() if rom not in _TWO_PLAYER_GAMES}


class AtariEnv(BatchedEnv):
    """Full games by the protocol of Machado et al. (2018): raw rewards, sticky actions, all lives.

    An observation is a stack of the last 4 frames, gray and of 84 x 84 pixels. An action lasts for 4
    simulator frames, and its frame is the pixel-wise maximum of the last two. ``end_of_life`` is true where a
    life was lost or the game is over; it is not part of ``done``.

    Args:
        env_id: ``ALE/<Game>-v5``.
        num_envs: Number of games.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels`` in color, ``(num_envs, 210, 160, 3)``. They come from a second
            simulator with the same seeds and actions.
        repeat_action_probability: Probability that a frame ignores the action and repeats the previous one.
        full_action_space: Whether the actions are all 18, or only those that do something in this game.
        use_fire_reset: Whether episodes begin with FIRE in games that have it, as in ALE's batched simulator
            and EnvPool by default; Breakout then starts without the agent. In later lives, the agent itself
            must take FIRE.
        noop_max: An episode begins with a random number of frames below this, of FIRE and no-ops.
        max_frames: Simulator frames after which an episode is truncated.
        num_threads: Threads that step the games; 0 uses one per core.

    Raises:
        UserError: If an option is out of range.
    """

    stacks_frames = True
    # A seeded reset loads the game anew, which takes as long as some 200 steps.
    steps_per_seed = 10_000

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        render: bool = False,
        repeat_action_probability: float = 0.25,
        full_action_space: bool = False,
        use_fire_reset: bool = True,
        noop_max: int = 30,
        max_frames: int = 108_000,
        num_threads: int = 0,
    ) -> None:
        from ale_py.vector_env import AtariVectorEnv

        if not 0 <= repeat_action_probability <= 1:
            raise UserError(
                f"repeat_action_probability is {repeat_action_probability}; expected a number from 0 to 1"
            )
        require_at_least(0, noop_max=noop_max, num_threads=num_threads)
        require_positive(max_frames=max_frames)
        shared: dict[str, Any] = {
            "game": atari_games()[env_id],
            "num_envs": num_envs,
            # Every batch has all games, so that their order is fixed.
            "batch_size": 0,
            "num_threads": num_threads,
            "max_num_frames_per_episode": max_frames,
            "repeat_action_probability": repeat_action_probability,
            "full_action_space": full_action_space,
            "autoreset_mode": "SameStep",
            "frameskip": FRAME_SKIP,
            "maxpool": True,
            "noop_max": noop_max,
            "episodic_life": False,
            "life_loss_info": False,
            "reward_clipping": False,
            "use_fire_reset": use_fire_reset,
        }
        simulator: Any = AtariVectorEnv(img_height=84, img_width=84, grayscale=True, stack_num=4, **shared)
        observations = {
            "observation": Unbounded((num_envs, 4, 84, 84), dtype=torch.uint8),
            "end_of_life": Binary(1, shape=(num_envs, 1), dtype=torch.bool),
        }
        simulators = {"observation": simulator}
        height, width = SCREEN
        if render:
            simulators["pixels"] = AtariVectorEnv(
                img_height=height, img_width=width, grayscale=False, stack_num=1, **shared
            )
        num_actions = int(simulator.single_action_space.n)
        action = discrete_action(num_actions, num_envs)
        picture_shape = (height, width, 3) if render else None
        super().__init__(env_id, num_envs, observations, action, FRAME_SKIP, seed, picture_shape)
        self._num_actions = num_actions
        self._simulators = simulators
        self._lives = np.zeros(num_envs, dtype=np.int32)
        self._is_stepping = False
        self._time_limit = -(-max_frames // FRAME_SKIP)

    def _simulate(self, action: NDArray[Any]) -> Outcome:
        self._send(action)
        return self._receive()

    def _send(self, action: NDArray[Any]) -> None:
        # ALE's threads would hang at an action that does not exist.
        if action.min() < 0 or action.max() >= self._num_actions:
            raise ValueError(
                f"actions go from {action.min()} to {action.max()}; there are {self._num_actions}"
            )
        for simulator in self._simulators.values():
            simulator.send(action)
        self._is_stepping = True

    def _receive(self) -> Outcome:
        self._is_stepping = False
        observations: Arrays = {}
        restarted: Arrays = {}
        for key, simulator in self._simulators.items():
            images, reward, terminated, truncated, info = simulator.recv()
            ended = terminated | truncated
            restarted[key] = self._without_stack(key, images)
            observations[key] = restarted[key]
            if ended.any():
                observations[key] = restarted[key].copy()
                # The rows of other games are uninitialized memory.
                observations[key][ended] = self._without_stack(key, info["final_obs"])[ended]
        # When a game ends, the lives are already those of the next one.
        lost = terminated | (~truncated & (info["lives"] < self._lives))
        np.copyto(self._lives, info["lives"])
        observations["end_of_life"] = lost[:, None]
        restarted["end_of_life"] = (lost & ~ended)[:, None]
        return Outcome(observations, reward, terminated, truncated, restarted if ended.any() else None)

    @property
    def time_limit(self) -> int:
        """Steps after which a game is truncated."""
        return self._time_limit

    def _restart(self, indices: NDArray[np.int64], seed: int | None) -> Arrays:
        return self._restart_games(indices, None if seed is None else env_seeds(seed, self.num_envs))

    def _restart_seeded(self, indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> Arrays:
        return self._restart_games(indices, seeds)

    def _restart_games(self, indices: NDArray[np.int64], seeds: NDArray[np.int64] | None) -> Arrays:
        if self._is_stepping:
            self._receive()
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[indices] = True
        observations: Arrays = {"end_of_life": np.zeros((len(indices), 1), dtype=np.bool_)}
        for key, simulator in self._simulators.items():
            images, info = simulator.reset(seed=seeds, options={"reset_mask": mask})
            observations[key] = self._without_stack(key, images)[indices]
        self._lives[indices] = info["lives"][indices]
        return observations

    @staticmethod
    def _without_stack(key: str, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Drop the axis of the stack from color images, which are stacks of one frame."""
        return images[:, 0] if key == "pixels" else images

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Stop the simulator's threads."""
        self._simulators.clear()
        super().close(raise_if_closed=raise_if_closed)


SUITE = Suite(ids=atari_games, env_class=lambda env_id: AtariEnv)
