"""A batch of simulators as one TorchRL environment."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import TensorSpec, Unbounded

from lit_gfs.envs.auto_reset import AutoResetEnv
from lit_gfs.envs.episodes import Arrays, Step, totals
from lit_gfs.envs.snapshots import RestorableSimulators


class BatchedEnv(RestorableSimulators, AutoResetEnv):
    """Base of the suites on the CPU: ``num_envs`` simulators that are stepped together.

    `AutoResetEnv` describes its entries and its resets.

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
        if picture_shape is not None:
            pixels = Unbounded((num_envs, *picture_shape), dtype=torch.uint8)
            observations = {**observations, "pixels": pixels}
        AutoResetEnv.__init__(self, num_envs, observations, action, frame_skip)
        floating = [name for name, spec in observations.items() if spec.dtype.is_floating_point]
        RestorableSimulators.__init__(self, env_id, num_envs, floating, seed)

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

    @property
    def _has_new_seed(self) -> bool:
        return self._episodes.seed is not None

    def _next_entries(self, action: Tensor) -> dict[str, Tensor]:
        return _next_entries(self.advance(action.numpy()))

    def _state_entries(self) -> dict[str, Tensor]:
        return _tensors(self._episodes.observations | self._episodes.totals())


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
