"""Collection of rollouts: the only place that steps environments for learning, and counts the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase

from lit_gfs.collectors.direct import DirectCollector
from lit_gfs.collectors.policy import Policy
from lit_gfs.collectors.remote import RemoteCollector, RemoteEnvs
from lit_gfs.collectors.resident import ResidentCollector
from lit_gfs.envs.auto_reset import AutoResetEnv
from lit_gfs.envs.task_stream import TaskStream
from lit_gfs.envs.tensor import TensorEnv
from lit_gfs.errors import EnvironmentFault
from lit_gfs.utils.seeding import (
    derive_seed,
    generator_states,
    isolated_generators,
    seed_generators,
    set_generator_states,
)

_MOST_CUT = 1 / 20
"""The share of all episodes that barriers may cut without a warning."""


class CollectingAgent(Protocol):
    """The methods of an agent that collection calls.

    If an agent has the attribute ``needs_only_final_observations`` and it is true, ``("next",
    "observation")`` of image rollouts is a `FinalObservations`, which halves their size.
    """

    device: torch.device

    def collection_policy(self) -> nn.Module:
        """Return the policy, which reads ``observation`` and writes ``action``."""

    def on_collection_start(self) -> None:
        """Prepare for the next rollout."""

    def on_collection_end(self, rollout: TensorDictBase) -> None:
        """See a rollout ``(num_envs, T)`` before learning."""


class EnvRunner:
    """Collects rollouts in such a way that a resumed run repeats the uninterrupted one.

    A checkpoint holds the state of the environments and of all generators, and a resumed run goes on from
    there without cutting an episode.

    Some environments cannot be restored (`is_restorable` is false). For these, a checkpoint is a barrier
    instead: before the next step, all environments are reset, and all generators are seeded from the run's
    seed, the rank, the environment steps and the updates so far. The run that goes on does this as well as
    the run that resumes, so both draw the same numbers. The open episodes count as truncated.

    Args:
        env: The batched environment to step; one in tensors goes to the agent's device, and `RemoteEnvs` are
            stepped by collectors of their own, in other processes.
        agent: The agent whose policy acts, and whose weights it shares.
        steps_per_env: Vector steps in a rollout.
        seed: The seed of the run.
        rank: The rank of this process; every process has environments of its own.
        world_size: Number of processes that collect.
        precision: Makes the context in which the policy runs, with the same precision as learning.
        before_rollout: Called before a rollout. If it raises an exception, nothing has changed.
        runs_ahead: Whether a rollout also begins the step after it, see `DirectCollector`, or the whole
            rollout after it, see `RemoteCollector`; environments in tensors have nothing to gain from that,
            and never do it.
        env_steps: Environment steps so far, of all processes.

    Raises:
        EnvironmentFault: If an environment fails when it is first reset.
    """

    def __init__(
        self,
        env: EnvBase | RemoteEnvs,
        agent: CollectingAgent,
        steps_per_env: int,
        seed: int,
        rank: int,
        world_size: int,
        precision: Callable[[], AbstractContextManager],
        before_rollout: Callable[[], None] = lambda: None,
        runs_ahead: bool = False,
        env_steps: int = 0,
    ) -> None:
        self.env = env
        self.agent = agent
        self.env_steps = env_steps
        self.vector_step = env.batch_size.numel() * world_size
        """Environment steps in one vector step, of all processes."""
        self.steps_per_env = steps_per_env
        self._seed = seed
        self.rank = rank
        self.precision = precision
        self._before_rollout = before_rollout
        self._barrier_due = True
        # State from a checkpoint, which `pass_barrier` restores before the next step.
        self._restored: dict[str, Any] | None = None
        # State of the generators to save, while other code draws from them.
        self._undisturbed_generators: dict[str, Any] | None = None
        # Episodes that ended by themselves, and that barriers cut.
        self._ended = self._cut = 0
        self._has_warned = False
        if isinstance(env, AutoResetEnv):
            env.keep_history()  # before the first reset, for `state_dict`
        policy = agent.collection_policy()
        uses_graphs = getattr(agent, "uses_cuda_graphs", False)
        if uses_graphs and isinstance(policy, Policy):
            policy.use_graphs(agent.device, cast(Any, agent).tensors)
        options: dict[str, Any] = {
            "frames_per_batch": env.batch_size.numel() * steps_per_env,
            "total_frames": -1,
            "track_traj_ids": False,
            "trust_policy": True,
            "auto_register_policy_transforms": False,
            # No copies: each rollout overwrites the one before.
            "return_same_td": True,
        }
        self._collector: DirectCollector | ResidentCollector | RemoteCollector
        with self._adding_steps_to_faults():
            if isinstance(env, RemoteEnvs):
                self._collector = RemoteCollector(env, agent, cast(Policy, policy), steps_per_env, runs_ahead)
            elif isinstance(env, TensorEnv) and isinstance(policy, Policy):
                self._collector = ResidentCollector(
                    env.to(agent.device), policy, uses_graphs=uses_graphs, **options
                )
            else:
                has_images = len(env.observation_spec["observation"].shape) == 4
                self._collector = DirectCollector(
                    env,
                    policy,
                    policy_device=agent.device,
                    env_device="cpu",
                    storing_device="cpu",
                    only_final_observations=has_images
                    and getattr(agent, "needs_only_final_observations", False),
                    runs_ahead=runs_ahead,
                    **options,
                )
        self._rollouts = iter(self._collector)

    @property
    def is_restorable(self) -> bool:
        """Whether a checkpoint holds the state of the environments, and so does not cut episodes."""
        return self._collector.is_direct and cast(AutoResetEnv, self.env).is_restorable

    def request_barrier(self) -> None:
        """Reset all environments and seed all generators before the next step."""
        self._barrier_due = True
        self._restored = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of environments and generators.

        If the environments cannot be restored, this requests a barrier and returns an empty dictionary.
        """
        if self._restored is not None:
            return self._restored
        snapshot = None if self._barrier_due else self._collector.snapshot()
        if snapshot is None:
            self.request_barrier()
            return {}
        generators = self._undisturbed_generators or generator_states(self.agent.device)
        return {"environments": snapshot, "generators": generators}

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Let other code, such as an evaluation, draw without effect on later draws or on a checkpoint."""
        with isolated_generators(self.agent.device) as states:
            self._undisturbed_generators = states
            try:
                yield
            finally:
                self._undisturbed_generators = None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the result of `state_dict`, with the next step."""
        self._barrier_due = not state
        self._restored = state or None

    def pass_barrier(self, updates: int) -> bool:
        """Before the next step, restore the state of a checkpoint, or pass a barrier that is due.

        Args:
            updates: Number of batches so far, of the run or of the present rollout. It distinguishes
                checkpoints at the same number of environment steps.

        Returns:
            Whether there was a barrier, which cut the open episodes.
        """
        if self._restored is not None:
            self._restore(self._restored)
        if not self._barrier_due:
            return False
        self._barrier_due = False
        self._count_cut_episodes()
        position = (self._seed, self.rank, self.env_steps, updates)
        seed_generators(derive_seed("generators", *position))
        self.env.set_seed(derive_seed("environments", *position))
        with self._adding_steps_to_faults():
            self._collector.reset()
        return True

    def begin_due_task(self) -> bool:
        """Before the next rollout, change to the task that the schedule of a `TaskStream` has now.

        Returns:
            Whether there was a change, which cut the open episodes. The agent announces it to callbacks.
        """
        env = self.env
        if not isinstance(env, TaskStream) or env.task == (task := env.task_at(self.env_steps)):
            return False
        env.begin_task(task)
        with self._adding_steps_to_faults():
            self._collector.reset()
        announce = getattr(self.agent, "announce_objective_shift", None)
        if callable(announce):
            announce("task")
        return True

    def _restore(self, state: dict[str, Any]) -> None:
        with self._adding_steps_to_faults():
            is_same = self._collector.restore(state["environments"])
        set_generator_states(state["generators"], self.agent.device)
        self._restored = None
        if not is_same:
            rank_zero_warn(
                f"{_name(self.env)} does not repeat itself from the seeds of its resets: its open episodes "
                "are cut, and the run does not go on as the one before would have"
            )
            self._barrier_due = True

    def _count_cut_episodes(self) -> None:
        """Count the open episodes that a barrier cuts, and warn once if they are many."""
        if isinstance(self.env, AutoResetEnv | RemoteEnvs):
            self._cut += self.env.open_episodes
        if self._cut > _MOST_CUT * (self._cut + self._ended) and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"checkpoints have cut {self._cut} of {self._cut + self._ended} episodes of "
                f"{_name(self.env)}; a larger data.checkpoint_every leaves them more room"
            )

    @contextmanager
    def _adding_steps_to_faults(self) -> Iterator[None]:
        """Note in a fault how many environment steps there were."""
        try:
            yield
        except EnvironmentFault as fault:
            fault.env_steps = self.env_steps
            raise

    def collect(self, steps: int | None = None) -> TensorDictBase:
        """Collect a rollout.

        Args:
            steps: Vector steps, at most ``steps_per_env``, which is the default.

        Returns:
            A rollout ``(num_envs, steps)`` on the environment's device; the next call overwrites it. The
            policy's outputs other than the action may be on the policy's device.

        Raises:
            EnvironmentFault: If an environment fails. The rollout does not count: a checkpoint that is
                written then has the counts from before it.
        """
        self._before_rollout()
        self.agent.on_collection_start()
        self._collector.steps = self.steps_per_env if steps is None else steps
        try:
            with self._adding_steps_to_faults(), self.precision():
                rollout = next(self._rollouts)
        except BaseException:
            # The environments are in the midst of the rollout: their state before it is lost.
            self.request_barrier()
            raise
        self.env_steps += rollout.shape[-1] * self.vector_step
        if not self.is_restorable:
            self._ended += int(rollout["next", "done"].sum())
        if isinstance(self._collector, RemoteCollector):
            lag = torch.tensor(float(self._collector.policy_lag))
            cast(Any, self.agent).record({"collect/policy_lag": lag})
        self.agent.on_collection_end(rollout)
        return rollout

    def close(self) -> None:
        """Shut the collector and its environments down."""
        self._collector.shutdown()


def _name(env: EnvBase | RemoteEnvs) -> str:
    return getattr(env, "env_id", type(env).__name__)
