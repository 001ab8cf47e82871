"""A TorchRL collector that writes each step directly into the tensors of the rollout."""

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
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.envs.episodes import Step

_CPU = torch.device("cpu")

_SUPPORTED_OPTIONS = {
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
"""TorchRL's options that direct rollouts support."""

_TOTALS = {"episode_return": torch.float32, "episode_length": torch.int64}
_STEP_FIELDS = {
    "reward": torch.float32,
    "done": torch.bool,
    "terminated": torch.bool,
    "truncated": torch.bool,
    **_TOTALS,
}
"""The fields of `lit_gfs.envs.episodes.Step` with one number for each environment."""


class DirectCollector(Collector):
    """A collector with little overhead beside the simulator and the policy.

    TorchRL's own rollout moves, completes and stacks a tensordict in every step, which takes several times as
    long as a light simulator. A direct rollout passes observations from the simulator to the policy's
    function, and writes them into a tensor ``(num_envs, T)``, without tensordicts in between. It needs a
    `lit_gfs.envs.base.BatchedEnv` and a `Policy`. With any other environment or policy, or with an option
    that asks for more (such as ``track_traj_ids``, TorchRL's default), the collector uses TorchRL's rollout.
    `is_direct` says which of the two it uses.

    A direct rollout has the same numbers as TorchRL's: ``observation``, the policy's outputs, and under
    ``next`` the observations, ``reward``, ``done``, ``terminated``, ``truncated``, ``episode_return`` and
    ``episode_length``. It omits all other entries of the environment before a step. With ``return_same_td``,
    the next rollout overwrites it. Set `steps` for shorter rollouts.

    A policy on another device takes one transfer per step each way: observations to it, actions back. The
    host waits for the actions and for nothing else. All entries of the rollout are on the CPU, except for the
    policy's other outputs, which stay on its device. For a policy on a GPU, the rollout's observations are in
    page-locked memory, from which they are sent back without waiting.

    Args:
        create_env_fn: The environment, or anything else from which TorchRL's collector makes one.
        policy: The policy; ``None`` draws random actions.
        only_final_observations: Whether ``("next", "observation")`` of a direct rollout is a
            `FinalObservations`, which omits the observations that the rollout has at the next step anyway.
            This halves the memory for images.
        runs_ahead: Whether a direct rollout also chooses the next action and begins its step at the end, so
            that simulators with threads of their own step while the agent learns. The policy from before the
            update chooses that one action.
        options: TorchRL's options.
    """

    _begun: _BegunStep | None = None

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
            and isinstance(policy, Policy)
            and options.keys() <= _SUPPORTED_OPTIONS
            and not options.get("track_traj_ids", True)
            and torch.device(options.get("storing_device") or _CPU) == _CPU
        )
        if self.is_direct:
            options["use_buffers"] = False
        super().__init__(create_env_fn, policy, **options)
        if not self.is_direct:
            return
        sends_to_cuda = self.policy_device is not None and self.policy_device.type == "cuda"
        self._recorder = _Recorder(
            create_env_fn, self.frames_per_batch, only_final_observations, sends_to_cuda
        )
        self.steps = self.frames_per_batch
        """Vector steps of the next direct rollouts, at most ``frames_per_batch`` for each environment."""
        self._act = cast(Policy, policy).act
        self._runs_ahead = runs_ahead
        # A policy on another device gets observations through one buffer, pinned for CUDA.
        self._has_remote_policy = self.policy_device not in (None, _CPU)
        if self._has_remote_policy:
            spec = create_env_fn.observation_spec["observation"]
            self._transfer_buffer = torch.empty(spec.shape, dtype=spec.dtype, pin_memory=sends_to_cuda)
        # A direct rollout has no private keys. The search for them takes longer than a step of CartPole.
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
                # Act, unless the step before has already begun this one.
                begun = self._begun or self._begin_step()
                step = env.finish()
                # When running ahead, the simulators get the next action before this step is recorded.
                self._begun = self._begin_step() if self._runs_ahead else None
                recorder.write(time, begun, step)
            return recorder.rollout()

    def _get_sync_fn(self, device: torch.device | None) -> Callable[[], None]:
        """Return a function that does nothing: a direct rollout waits for its actions itself.

        TorchRL's own function fails for devices that it does not know.
        """
        return (lambda: None) if self.is_direct else super()._get_sync_fn(device)

    def _begin_step(self) -> _BegunStep:
        """Let the policy act, and send its actions to the simulators."""
        env = cast(BatchedEnv, self.env)
        observation = env.observations["observation"]
        outputs = self._act(self._to_policy(observation))
        if self._has_remote_policy:
            outputs = {**outputs, "action": self._fetch_action(outputs["action"])}
        env.begin(outputs["action"].numpy())
        return _BegunStep(observation, outputs)

    def reset(self, *arguments: Any, **options: Any) -> None:
        """Reset the environments, and drop a step that has begun."""
        self._begun = None
        super().reset(*arguments, **options)

    def snapshot(self) -> dict[str, Any] | None:
        """Return the state of environments and collector, between two rollouts.

        Returns:
            Tensors and plain data; ``None`` if the environments cannot be restored.
        """
        snapshot = cast(BatchedEnv, self.env).snapshot() if self.is_direct else None
        if snapshot is None or self._begun is None:
            return snapshot
        return {**snapshot, "begun": {key: value.cpu() for key, value in self._begun.outputs.items()}}

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Go on from a snapshot.

        Returns:
            Whether the observations are the same as then, see `lit_gfs.envs.base.BatchedEnv.restore`.
        """
        env = cast(BatchedEnv, self.env)
        is_same = env.restore(snapshot)
        self._begun = None
        if is_same and "begun" in snapshot and self._runs_ahead:
            action = snapshot["begun"]["action"]
            others = {key: value.to(self.policy_device) for key, value in snapshot["begun"].items()}
            self._begun = _BegunStep(env.observations["observation"], {**others, "action": action})
            env.begin(action.numpy())
        return is_same

    def _to_policy(self, array: NDArray[Any]) -> Tensor:
        observation = torch.from_numpy(array)
        if not self._has_remote_policy:
            return observation
        # The next step may overwrite the buffer: by then this step's action has arrived, and so the copy too.
        return self._transfer_buffer.copy_(observation).to(self.policy_device, non_blocking=True)

    def _fetch_action(self, action: Tensor) -> Tensor:
        """Fetch actions for the simulators: here, once in a step, the host waits for the policy's device."""
        return action.cpu()


class _BegunStep(NamedTuple):
    """A step that simulators have begun: the observation before it, and the policy's outputs for it.

    The action is on the CPU, the other outputs are on the policy's device.
    """

    observation: NDArray[Any]
    outputs: Mapping[str, Tensor]


class _Recorder:
    """The tensors of a rollout.

    Args:
        env: The environment.
        steps: Most vector steps in a rollout, ``T``.
        only_final_observations: As for `DirectCollector`.
        is_pinned: Whether observations are in page-locked memory.
    """

    def __init__(self, env: BatchedEnv, steps: int, only_final_observations: bool, is_pinned: bool) -> None:
        self._num_envs = env.num_envs
        self._only_final = only_final_observations
        specs: dict[str, TensorSpec] = dict(env.observation_spec.items())
        # Entries of ``next``: by name those of `Step.observations`, by field the numbers of a `Step`.
        by_name = {
            key: torch.zeros(env.num_envs, steps, *spec.shape[1:], dtype=spec.dtype)
            for key, spec in specs.items()
            if key not in _TOTALS and not (key == "observation" and only_final_observations)
        }
        by_field = {key: torch.zeros(env.num_envs, steps, dtype=dtype) for key, dtype in _STEP_FIELDS.items()}
        spec = specs["observation"]
        self._observation = torch.zeros(
            env.num_envs, steps, *spec.shape[1:], dtype=spec.dtype, pin_memory=is_pinned
        )
        self._next: dict[str, Any] = {
            **by_name,
            **{key: rows.unsqueeze(-1) for key, rows in by_field.items()},
        }
        # The same memory as NumPy arrays, which write a small row in a fifth of torch's time.
        self._observation_rows = self._observation.numpy()
        self._named_rows = {key: rows.numpy() for key, rows in by_name.items()}
        self._field_rows = {key: rows.numpy() for key, rows in by_field.items()}
        self.begin(steps)

    def begin(self, steps: int) -> None:
        """Begin a rollout of this many vector steps."""
        self._batch_size = torch.Size([self._num_envs, steps])
        self._outputs: dict[str, list[Tensor]] = {}
        self._final: list[tuple[NDArray[np.int64], int, NDArray[Any]]] = []

    def write(self, time: int, begun: _BegunStep, step: Step) -> None:
        """Write step number ``time``."""
        # Before the step: the observation, and the policy's outputs, which are stacked at the end.
        self._observation_rows[:, time] = begun.observation
        for key, value in begun.outputs.items():
            self._outputs.setdefault(key, []).append(value)
        # After the step: the entries of ``next``.
        for key, rows in self._named_rows.items():
            rows[:, time] = step.observations[key]
        for key, rows in self._field_rows.items():
            rows[:, time] = getattr(step, key)
        # Only final observations are kept where the next step has the others.
        if self._only_final:
            last = time == self._batch_size[1] - 1
            (ended,) = np.nonzero(step.done | last)
            if len(ended):
                self._final.append((ended, time, step.observations["observation"][ended]))

    def rollout(self) -> TensorDict:
        """Return the rollout ``(num_envs, T)``."""
        steps = self._batch_size[1]
        outputs = {key: torch.stack(values, 1) for key, values in self._outputs.items()}
        next_ = {key: rows[:, :steps] for key, rows in self._next.items()}
        if self._only_final:
            next_["observation"] = NonTensorData(self._final_observations(), batch_size=self._batch_size)
        return self._tensordict(
            {
                "observation": self._observation[:, :steps],
                **outputs,
                "next": self._tensordict(next_),
            },
            device=_CPU if all(value.device == _CPU for value in outputs.values()) else None,
        )

    def _final_observations(self) -> FinalObservations:
        env = np.concatenate([ended for ended, _, _ in self._final])
        time = np.concatenate([np.full(len(ended), at) for ended, at, _ in self._final])
        observation = np.concatenate([rows for _, _, rows in self._final])
        return FinalObservations(*(torch.from_numpy(part) for part in (env, time, observation)))

    def _tensordict(self, entries: dict[str, Any], device: torch.device | None = _CPU) -> TensorDict:
        # The public constructor checks every entry, which takes longer than a step of CartPole.
        return TensorDict._new_unsafe(source=entries, batch_size=self._batch_size, device=device)
