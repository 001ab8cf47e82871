"""A TorchRL collector for environments in tensors: a rollout never leaves the device of the agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import set_exploration_type

from lit_gfs.collectors.policy import Policy
from lit_gfs.envs.tensor import TensorEnv


class ResidentCollector(Collector):
    """A collector that passes tensors between environment and policy, and stacks them at the end.

    A rollout ``(num_envs, T)`` has the entries of one of `lit_gfs.collectors.direct.DirectCollector`, on the
    device of the environment. If the policy is on the same device, no step copies a tensor to another one, or
    waits for a result.

    Args:
        env: The environment.
        policy: The policy.
        uses_graphs: Whether the environment steps by a CUDA graph, see `TensorEnv.use_graphs`.
        options: TorchRL's options; all devices are the environment's.
    """

    is_direct = True

    def __init__(self, env: TensorEnv, policy: Policy, *, uses_graphs: bool = False, **options: Any) -> None:
        if uses_graphs:
            env.use_graphs()
        devices = dict.fromkeys(("policy_device", "env_device", "storing_device"), env.device)
        super().__init__(env, policy, **{**options, **devices, "use_buffers": False})
        self.steps = self.frames_per_batch
        """Vector steps of the next rollouts, at most ``frames_per_batch`` for each environment."""
        self._act = policy.act
        # A rollout has no private keys to search for.
        self._exclude_private_keys = False

    def rollout(self) -> TensorDictBase:
        """Step the environments ``T`` times; return a rollout ``(num_envs, T)``."""
        env = cast(TensorEnv, self.env)
        before: dict[str, list[Tensor]] = {}
        after: dict[str, list[Tensor]] = {}
        with torch.no_grad(), set_exploration_type(self.exploration_type):
            for _ in range(self.steps):
                observation = env.observations["observation"]
                outputs = self._act(observation)
                step = env.advance(outputs["action"])
                _append(before, {"observation": observation, **outputs})
                _append(after, step._asdict())
        columns = {
            key: torch.stack(values, 1) if key == "observation" else torch.stack(values, 1).unsqueeze(-1)
            for key, values in after.items()
        }
        return self._tensordict(
            {
                **{key: torch.stack(values, 1) for key, values in before.items()},
                "next": self._tensordict(columns),
            }
        )

    def _tensordict(self, entries: dict[str, Any]) -> TensorDict:
        env = cast(TensorEnv, self.env)
        return TensorDict._new_unsafe(
            source=entries, batch_size=torch.Size([env.num_envs, self.steps]), device=env.device
        )

    def _get_sync_fn(self, device: torch.device | None) -> Callable[[], None]:
        """Return a function that does nothing: what reads a rollout is on its device too."""
        return lambda: None

    def snapshot(self) -> dict[str, Any] | None:
        """Return the state of the environments, between two rollouts; see `TensorEnv.snapshot`."""
        return cast(TensorEnv, self.env).snapshot()

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Go on from a snapshot; see `TensorEnv.restore`."""
        return cast(TensorEnv, self.env).restore(snapshot)


def _append(columns: dict[str, list[Tensor]], entries: Any) -> None:
    for key, value in entries.items():
        columns.setdefault(key, []).append(value)
