"""What environments share that begin a new episode in the step that ends one: TorchRL's side of them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

_DONE_KEYS = ("done", "terminated", "truncated")


class AutoResetEnv(EnvBase):
    """Base of the environments that begin a new episode in the step that ends one.

    ``("next", "observation")`` of an ended episode is its final observation. The first observation of the
    next episode is held back until TorchRL asks for a reset of those environments, which then costs nothing.
    A step without that reset goes on in the new episode.

    ``episode_return`` (raw) and ``episode_length`` are running totals over the current episode, the latest
    step included; both are 0 at a reset.

    A full reset after `set_seed` begins a trajectory that is a pure function of the seed and the actions,
    whatever happened before. Without a new seed, resets go on drawing from the generators.

    Args:
        num_envs: Number of environments.
        observations: Specs of the observations by name, each ``(num_envs, *shape)``.
        action: Spec of the actions, ``(num_envs,)`` or ``(num_envs, dim)``.
        frame_skip: Simulator frames per step.
        device: Where the tensors are that TorchRL gets.
    """

    env_id: str
    num_envs: int

    def __init__(
        self,
        num_envs: int,
        observations: dict[str, TensorSpec],
        action: TensorSpec,
        frame_skip: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(device=device, batch_size=torch.Size([num_envs]))
        self._frames_per_step = frame_skip
        column = (num_envs, 1)
        self.observation_spec = Composite(
            **observations,
            episode_return=Unbounded(column, dtype=torch.float32),
            episode_length=Unbounded(column, dtype=torch.int64),
            shape=(num_envs,),
        )
        self.action_spec = action
        self.reward_spec = Unbounded(column, dtype=torch.float32)
        self.full_done_spec = Composite(
            {key: Binary(1, shape=column, dtype=torch.bool) for key in _DONE_KEYS}, shape=(num_envs,)
        )
        # All states that `step_and_maybe_reset` returns share these: new tensors would take a tenth of a
        # CartPole step. TorchRL writes into such a state in place only at a reset, and then zeros.
        self._shared_not_done = self._not_done()

    # -- for subclasses to implement ---------------------------------------------------------------------

    @property
    @abstractmethod
    def open_episodes(self) -> int:
        """Number of episodes that have taken a step and have not ended."""

    @property
    @abstractmethod
    def is_restorable(self) -> bool:
        """Whether `snapshot` works, once the environments have been reset."""

    @abstractmethod
    def snapshot(self) -> dict[str, Any] | None:
        """Return the state of all environments between two steps; ``None`` if they cannot be restored."""

    @abstractmethod
    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Go on from a snapshot; return whether the observations are the same as then."""

    def keep_history(self) -> None:
        """Prepare for `snapshot`; call this before the first reset."""

    @property
    @abstractmethod
    def _has_new_seed(self) -> bool:
        """Whether a seed waits for the next full reset."""

    @abstractmethod
    def _next_entries(self, action: Tensor) -> dict[str, Tensor]:
        """Step, and take TorchRL's reset as given; return the entries of ``next``."""

    @abstractmethod
    def _state_entries(self) -> dict[str, Tensor]:
        """Return what the next action answers to: observations and totals."""

    # -- TorchRL -----------------------------------------------------------------------------------------

    @property
    def frame_skip(self) -> int:
        """Simulator frames per environment step."""
        # A property: TorchRL would take an attribute of the instance for a request to repeat every step.
        return self._frames_per_step

    def step_and_maybe_reset(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """Step, then reset what ended, as `torchrl.envs.EnvBase.step_and_maybe_reset` does.

        TorchRL's own method is general: it looks up, filters and merges nested entries, which takes several
        times as long as a light simulator. Here every entry is a plain tensor and the reset observations are
        at hand, so this method builds the same two tensordicts directly. Other inputs go to TorchRL's method.

        There is one difference: the second tensordict holds the environment's entries, but not the policy's
        outputs of this step. A policy that only reads observations replaces them before anything reads them.
        Its ``done``, ``terminated`` and ``truncated`` are all false, and must not be written to in place.
        """
        if not self._is_plain(tensordict):
            return super().step_and_maybe_reset(tensordict)
        next_ = self._tensordict(self._next_entries(tensordict.get("action")))
        # The public setter would check that both have the same batch size and device.
        tensordict._set_str("next", next_, inplace=False, validated=True)
        return tensordict, self._tensordict({**self._state_entries(), **self._shared_not_done})

    def _is_plain(self, tensordict: TensorDictBase) -> bool:
        return (
            type(tensordict) is TensorDict
            and tensordict.device == self.device
            and tensordict.batch_size == self.batch_size
            and not self._has_new_seed
            and "_step" not in tensordict
            and "next" not in tensordict
        )

    def _tensordict(self, entries: dict[str, Tensor]) -> TensorDict:
        # The public constructor checks every entry, which takes longer than a step of CartPole.
        return TensorDict._new_unsafe(source=entries, batch_size=self.batch_size, device=self.device)

    def _not_done(self) -> dict[str, Tensor]:
        shape = (*self.batch_size, 1)
        return {key: torch.zeros(shape, dtype=torch.bool, device=self.device) for key in _DONE_KEYS}
