"""A TorchRL collector whose steps go straight into the tensors that it hands out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import NonTensorData, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.data import TensorSpec
from torchrl.envs import set_exploration_type

from lit_gfs.collectors.final_observations import FinalObservations
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs.base import BatchedEnv, Step

_CPU = torch.device("cpu")

_HEEDED = {
    "auto_register_policy_transforms",
    "env_device",
    "exploration_type",
    "frames_per_batch",
    "no_cuda_sync",
    "policy_device",
    "post_collect_hook",
    "pre_collect_hook",
    "return_same_td",
    "storing_device",
    "total_frames",
    "track_traj_ids",
    "trust_policy",
}
"""TorchRL's options that a direct rollout has regard to."""

_TOTALS = {"episode_return": torch.float32, "episode_length": torch.int64}
_BY_STEP = {
    "reward": torch.float32,
    "done": torch.bool,
    "terminated": torch.bool,
    "truncated": torch.bool,
    **_TOTALS,
}
"""What a `lit_gfs.envs.base.Step` has one number of for each environment."""


class DirectCollector(Collector):
    """A collector that spends its time in the simulator and in the policy.

    TorchRL's own rollout moves, completes and stacks a tensordict in every step, which takes several times as
    long as a light simulator. Where a `lit_gfs.envs.base.BatchedEnv` meets a `Policy`,
    observations go from the simulator to the policy's function and to their place in a tensor
    ``(num_envs, T)``, without tensordicts on the way. Any other environment or policy, and any option that
    asks for more (such as ``track_traj_ids``, TorchRL's default), gets TorchRL's rollout; `is_direct` says
    which it is.

    A direct rollout has the numbers that TorchRL's would have, on the CPU: ``observation``, what the policy
    returned, and under ``next`` the observations, ``reward``, ``done``, ``terminated``, ``truncated``,
    ``episode_return`` and ``episode_length``. It leaves out what else the environment shows before a step.
    With ``return_same_td``, the next rollout is written over it. `steps` may shorten it.

    A policy on another device has one transfer per step each way: observations there, actions back. What else
    it returns comes at the end of the rollout.

    Args:
        create_env_fn: The environment, or what else TorchRL's collector makes one from.
        policy: The policy; ``None`` draws random actions.
        only_final_observations: Whether ``("next", "observation")`` of a direct rollout is a
            `FinalObservations`, without what the rollout shows one step later
            anyhow: half the memory, where observations are images.
        runs_ahead: Whether a direct rollout ends with the next action chosen and begun, so that simulators
            with threads of their own step while the agent learns. That one action is then of the policy
            before.
        options: TorchRL's.
    """

    _begun: _Begun | None = None

    def __init__(
        self,
        create_env_fn: Any,
        policy: Any = None,
        *,
        only_final_observations: bool = False,
        runs_ahead: bool = False,
        **options: Any,
    ) -> None:
        self.is_direct = (
            isinstance(create_env_fn, BatchedEnv)
            and type(policy) is Policy
            and options.keys() <= _HEEDED
            and not options.get("track_traj_ids", True)
            and torch.device(options.get("storing_device") or _CPU) == _CPU
        )
        if self.is_direct:
            options["use_buffers"] = False
        super().__init__(create_env_fn, policy, **options)
        if not self.is_direct:
            return
        self._recorder = _Recorder(create_env_fn, self.frames_per_batch, only_final_observations)
        self.steps = self.frames_per_batch
        """Vector steps of the next direct rollouts, at most ``frames_per_batch`` for each environment."""
        self._act = cast(Policy, policy).act
        self._runs_ahead = runs_ahead
        self._has_remote_policy = self.policy_device not in (None, _CPU)
        if self._has_remote_policy:
            spec = create_env_fn.observation_spec["observation"]
            self._staged = torch.empty(
                spec.shape, dtype=spec.dtype, pin_memory=self.policy_device.type == "cuda"
            )
        # A direct rollout has no keys to exclude, and looking for them takes longer than a step of CartPole.
        self._exclude_private_keys = False

    def rollout(self) -> TensorDictBase:
        """Step the environments ``T`` times; return a rollout ``(num_envs, T)``."""
        if not self.is_direct:
            return super().rollout()
        if self.pre_collect_hook is not None:
            self.pre_collect_hook()
        env, recorder = cast(BatchedEnv, self.env), self._recorder
        recorder.begin(self.steps)
        with torch.no_grad(), set_exploration_type(self.exploration_type):
            for time in range(self.steps):
                begun = self._begun or self._begin_step()
                step = env.finish()
                self._begun = self._begin_step() if self._runs_ahead else None
                recorder.write(time, begun, step)
            return recorder.rollout()

    def _get_sync_fn(self, device: torch.device | None) -> Callable[[], None]:
        """Wait for no device: a direct rollout is on the CPU when it is returned, from devices that TorchRL
        does not know as well.
        """
        return (lambda: None) if self.is_direct else super()._get_sync_fn(device)

    def _begin_step(self) -> _Begun:
        env = cast(BatchedEnv, self.env)
        shown = env.shown["observation"]
        outputs = self._act(self._to_policy(shown))
        env.begin(self._from_policy(outputs["action"]))
        return _Begun(shown, outputs)

    def reset(self, *arguments: Any, **options: Any) -> None:
        """Reset the environments; a step that was begun is dropped."""
        self._begun = None
        super().reset(*arguments, **options)

    def snapshot(self) -> dict[str, Any] | None:
        """Return where environments and collector are, between two rollouts; ``None`` if nothing holds it."""
        snapshot = cast(BatchedEnv, self.env).snapshot() if self.is_direct else None
        if snapshot is None or self._begun is None:
            return snapshot
        return {**snapshot, "begun": {key: value.cpu() for key, value in self._begun.outputs.items()}}

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Go on where a snapshot was taken.

        Returns:
            Whether the environments show what they showed then, see `lit_gfs.envs.base.BatchedEnv.restore`.
        """
        env = cast(BatchedEnv, self.env)
        repeated = env.restore(snapshot)
        self._begun = None
        if repeated and "begun" in snapshot and self._runs_ahead:
            outputs = {key: value.to(self.policy_device) for key, value in snapshot["begun"].items()}
            self._begun = _Begun(env.shown["observation"], outputs)
            env.begin(snapshot["begun"]["action"].numpy())
        return repeated

    def _to_policy(self, observation: NDArray[Any]) -> Tensor:
        shown = torch.from_numpy(observation)
        if not self._has_remote_policy:
            return shown
        # It may be staged over in the next step, for by then the action that answers to it has been awaited.
        return self._staged.copy_(shown).to(self.policy_device, non_blocking=True)

    def _from_policy(self, action: Tensor) -> NDArray[Any]:
        return (action.cpu() if self._has_remote_policy else action).numpy()


class _Begun(NamedTuple):
    """A step that simulators were sent: what the policy saw, and what it returned."""

    shown: NDArray[Any]
    outputs: Mapping[str, Tensor]


class _Recorder:
    """The tensors of a rollout, and what each step writes into them.

    Args:
        env: What is recorded.
        steps: Vector steps in a rollout, ``T``.
        only_final_observations: As for `DirectCollector`.
    """

    def __init__(self, env: BatchedEnv, steps: int, only_final_observations: bool) -> None:
        self._num_envs = env.num_envs
        self._only_final = only_final_observations
        specs: dict[str, TensorSpec] = dict(env.observation_spec.items())
        by_name = {
            key: torch.zeros(env.num_envs, steps, *spec.shape[1:], dtype=spec.dtype)
            for key, spec in specs.items()
            if key not in _TOTALS and not (key == "observation" and only_final_observations)
        }
        by_step = {key: torch.zeros(env.num_envs, steps, dtype=dtype) for key, dtype in _BY_STEP.items()}
        spec = specs["observation"]
        self._observation = torch.zeros(env.num_envs, steps, *spec.shape[1:], dtype=spec.dtype)
        self._following: dict[str, Any] = {
            **by_name,
            **{key: rows.unsqueeze(-1) for key, rows in by_step.items()},
        }
        # The same memory: NumPy writes a small row in a fifth of torch's time.
        self._observation_rows = self._observation.numpy()
        self._named_rows = {key: rows.numpy() for key, rows in by_name.items()}
        self._step_rows = {key: rows.numpy() for key, rows in by_step.items()}
        self.begin(steps)

    def begin(self, steps: int) -> None:
        """Begin a rollout of so many vector steps, at most those that there is room for."""
        self._batch_size = torch.Size([self._num_envs, steps])
        self._outputs: dict[str, list[Tensor]] = {}
        self._final: list[tuple[NDArray[np.int64], int, NDArray[Any]]] = []

    def write(self, time: int, begun: _Begun, step: Step) -> None:
        """Write step ``time``, and what it led to."""
        self._observation_rows[:, time] = begun.shown
        for key, value in begun.outputs.items():
            self._outputs.setdefault(key, []).append(value)
        for key, rows in self._named_rows.items():
            rows[:, time] = step.observations[key]
        for key, rows in self._step_rows.items():
            rows[:, time] = getattr(step, key)
        if self._only_final:
            last = time == self._batch_size[1] - 1
            (ended,) = np.nonzero(step.done | last)
            if len(ended):
                self._final.append((ended, time, step.observations["observation"][ended]))

    def rollout(self) -> TensorDict:
        """Return what was written."""
        steps = self._batch_size[1]
        following = {key: rows[:, :steps] for key, rows in self._following.items()}
        if self._only_final:
            following["observation"] = NonTensorData(self._final_observations(), batch_size=self._batch_size)
        return self._tensordict(
            {
                "observation": self._observation[:, :steps],
                # Wherever the policy is: one transfer, and none from the CPU.
                **{key: torch.stack(values, 1).cpu() for key, values in self._outputs.items()},
                "next": self._tensordict(following),
            }
        )

    def _final_observations(self) -> FinalObservations:
        env = np.concatenate([ended for ended, _, _ in self._final])
        time = np.concatenate([np.full(len(ended), at) for ended, at, _ in self._final])
        observation = np.concatenate([rows for _, _, rows in self._final])
        return FinalObservations(*(torch.from_numpy(part) for part in (env, time, observation)))

    def _tensordict(self, entries: dict[str, Any]) -> TensorDict:
        # The public constructor checks every entry, which takes longer than a step of CartPole.
        return TensorDict._new_unsafe(source=entries, batch_size=self._batch_size, device=_CPU)
