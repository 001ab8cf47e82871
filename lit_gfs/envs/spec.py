"""What an agent needs to know about an environment, in plain Python values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchrl.envs import EnvBase


@dataclass(frozen=True)
class EnvSpec:
    """Spaces of one environment of a batch.

    Attributes:
        env_id: The id it was made with.
        observation_shape: Shape of one observation; ``(channels, height, width)`` for pixels.
        observation_dtype: ``"float32"``, ``"uint8"`` or ``"bool"``.
        num_actions: How many discrete actions there are; ``None`` if actions are continuous.
        action_low: Smallest value of each action dimension; ``None`` if actions are discrete.
        action_high: Largest value of each action dimension; ``None`` if actions are discrete.
        frame_skip: Simulator frames per environment step.
        is_frame_stack: Whether an observation is the last few frames, newest last, and differs from the one
            before by a frame at its end: replay then stores each frame once. Of environments that are a
            user's own it is not assumed.
        max_episode_steps: Steps after which an episode is truncated; ``None`` where that is not known.
    """

    env_id: str
    observation_shape: tuple[int, ...]
    observation_dtype: str
    num_actions: int | None
    action_low: tuple[float, ...] | None
    action_high: tuple[float, ...] | None
    frame_skip: int
    is_frame_stack: bool = False
    max_episode_steps: int | None = None

    @property
    def is_discrete(self) -> bool:
        """Whether an action is one of ``num_actions``."""
        return self.num_actions is not None

    @property
    def is_pixels(self) -> bool:
        """Whether observations are images."""
        return len(self.observation_shape) == 3

    @property
    def action_dim(self) -> int:
        """Numbers in a continuous action; 1 for the index of a discrete one."""
        return 1 if self.action_low is None else len(self.action_low)

    @classmethod
    def from_env(cls, env: EnvBase) -> EnvSpec:
        """Read the spaces of an environment that `make_env` made.

        Args:
            env: A batch of environments, ``(num_envs,)``.
        """
        batched: Any = env
        observation = batched.observation_spec["observation"]
        action = batched.action_spec_unbatched
        discrete = not action.dtype.is_floating_point
        return cls(
            env_id=batched.env_id,
            observation_shape=tuple(observation.shape[1:]),
            observation_dtype=str(observation.dtype).removeprefix("torch."),
            num_actions=int(action.space.n) if discrete else None,
            action_low=None if discrete else tuple(action.space.low.tolist()),
            action_high=None if discrete else tuple(action.space.high.tolist()),
            frame_skip=batched.frame_skip,
            is_frame_stack=getattr(batched, "stacks_frames", False),
            max_episode_steps=getattr(batched, "time_limit", None),
        )
