"""The properties of an environment that agents need, in plain Python values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchrl.data import MultiCategorical
from torchrl.envs import EnvBase


@dataclass(frozen=True)
class EnvSpec:
    """Spaces of one environment of a batch.

    Attributes:
        env_id: The id of the environment.
        observation_shape: Shape of one observation; ``(channels, height, width)`` for pixels.
        observation_dtype: ``"float32"``, ``"uint8"`` or ``"bool"``.
        num_actions: Number of discrete actions; ``None`` if an action is not a single discrete choice.
        action_low: Smallest value of each dimension of a continuous action, minus infinity where there is no
            bound; ``None`` if actions are discrete.
        action_high: Largest value of each dimension of a continuous action; ``None`` if actions are discrete.
        frame_skip: Simulator frames per environment step.
        is_frame_stack: Whether an observation is a stack of the last few frames, the newest last, so that
            replay can store each frame once. It is false for all environments of users.
        max_episode_steps: Steps after which an episode is truncated; ``None`` where that is not known.
        action_choices: Number of options of each choice, where an action is several discrete choices at once;
            ``None`` for other actions.
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
    action_choices: tuple[int, ...] | None = None

    @property
    def is_discrete(self) -> bool:
        """Whether an action is a single discrete choice."""
        return self.num_actions is not None

    @property
    def is_pixels(self) -> bool:
        """Whether observations are images."""
        return len(self.observation_shape) == 3

    @property
    def action_dim(self) -> int:
        """Numbers in an action; 1 for the index of a discrete one."""
        return len(self.action_low or self.action_choices or (None,))

    @classmethod
    def from_env(cls, env: EnvBase) -> EnvSpec:
        """Read the spaces of an environment that `make_env` made.

        Args:
            env: A batch of environments, ``(num_envs,)``.
        """
        batched: Any = env
        observation = batched.observation_spec["observation"]
        action = batched.action_spec_unbatched
        continuous = action.dtype.is_floating_point
        choices = tuple(action.nvec.tolist()) if isinstance(action, MultiCategorical) else None
        bounds = getattr(batched, "action_bounds", None)
        if continuous and bounds is None:
            bounds = (action.space.low, action.space.high)
        return cls(
            env_id=batched.env_id,
            observation_shape=tuple(observation.shape[1:]),
            observation_dtype=str(observation.dtype).removeprefix("torch."),
            num_actions=None if continuous or choices else int(action.space.n),
            action_low=None if bounds is None else tuple(bounds[0].tolist()),
            action_high=None if bounds is None else tuple(bounds[1].tolist()),
            frame_skip=batched.frame_skip,
            is_frame_stack=getattr(batched, "stacks_frames", False),
            max_episode_steps=getattr(batched, "time_limit", None),
            action_choices=choices,
        )
