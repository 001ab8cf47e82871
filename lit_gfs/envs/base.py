"""A batch of simulators as one TorchRL environment."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from lit_gfs.envs.episodes import Arrays, Step, totals
from lit_gfs.envs.snapshots import RestorableSimulators

_DONE_KEYS = ("done", "terminated", "truncated")
_CPU = torch.device("cpu")


class BatchedEnv(RestorableSimulators, EnvBase):
    """Base of the suites: ``num_envs`` simulators that begin a new episode in the step that ends one.

    ``("next", "observation")`` of an ended episode is its final observation. The first observation of the
    next episode is held back until TorchRL asks for a reset of those environments, which then costs nothing.
    A step without that reset goes on in the new episode.

    ``episode_return`` (raw) and ``episode_length`` are running totals over the current episode, the latest
    step included; both are 0 at a reset.

    A full reset after `set_seed` begins a trajectory that is a pure function of the seed and the actions,
    whatever happened before. Without a new seed, resets go on drawing from the simulators' generators.

    `advance` and `observations` give the same steps without tensordicts. `snapshot` and `restore` bring all
    simulators back to an earlier state, in this process or in another.

    Args:
        env_id: The id by which a user knows this environment.
        num_envs: Number of simulators.
        observations: Specs of the observations by name, each ``(num_envs, *shape)``.
        action: Spec of the actions, ``(num_envs,)`` or ``(num_envs, dim)``.
        frame_skip: Simulator frames per step.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        picture_shape: Shape ``(height, width, 3)`` of ``pixels``, which are added to the observations;
            ``None`` adds none.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        observations: dict[str, TensorSpec],
        action: TensorSpec,
        frame_skip: int,
        seed: int | None,
        picture_shape: tuple[int, ...] | None = None,
    ) -> None:
        EnvBase.__init__(self, device=_CPU, batch_size=torch.Size([num_envs]))
        if picture_shape is not None:
            pixels = Unbounded((num_envs, *picture_shape), dtype=torch.uint8)
            observations = {**observations, "pixels": pixels}
        floating = [name for name, spec in observations.items() if spec.dtype.is_floating_point]
        RestorableSimulators.__init__(self, env_id, num_envs, floating, seed)
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

    @property
    def frame_skip(self) -> int:
        """Simulator frames per step."""
        # A property: TorchRL would take an attribute of the instance for a request to repeat every step.
        return self._frames_per_step

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._episodes.seed = seed

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        episodes = self._episodes
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None or not episodes.observations:
            self._reset_all()
        else:
            self._reset_where(mask.reshape(-1).numpy())
        # Copies: collectors write in place into the result of a reset.
        entries = {key: values.copy() for key, values in (episodes.observations | episodes.totals()).items()}
        return self._tensordict({**_tensors(entries), **self._not_done()})

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        step = self._step_all(tensordict.get("action").numpy())
        self._episodes.already_reset = step.done.copy()
        return self._tensordict(_next_entries(step))

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
        next_ = self._tensordict(_next_entries(self.advance(tensordict.get("action").numpy())))
        # The public setter would check that both have the same batch size and device.
        tensordict._set_str("next", next_, inplace=False, validated=True)
        state = _tensors(self._episodes.observations | self._episodes.totals())
        return tensordict, self._tensordict({**state, **self._shared_not_done})

    def _is_plain(self, tensordict: TensorDictBase) -> bool:
        return (
            type(tensordict) is TensorDict
            and tensordict.device == _CPU
            and tensordict.batch_size == self.batch_size
            and self._episodes.seed is None
            and "_step" not in tensordict
            and "next" not in tensordict
        )

    def _tensordict(self, entries: dict[str, Tensor]) -> TensorDict:
        # The public constructor checks every entry, which takes longer than a step of CartPole.
        return TensorDict._new_unsafe(source=entries, batch_size=self.batch_size, device=_CPU)

    def _not_done(self) -> dict[str, Tensor]:
        return {key: torch.zeros(self.num_envs, 1, dtype=torch.bool) for key in _DONE_KEYS}


def _next_entries(step: Step) -> dict[str, Tensor]:
    """Return the entries of ``next``."""
    return {
        **_tensors(step.observations),
        **_tensors(totals(step.episode_return, step.episode_length)),
        "reward": _column(step.reward.astype("float32", copy=False)),
        "done": _column(step.done),
        "terminated": _column(step.terminated),
        "truncated": _column(step.truncated),
    }


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {key: torch.from_numpy(values) for key, values in arrays.items()}


def _column(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values[:, None])
