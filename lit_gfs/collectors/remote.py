"""Collection in processes on this machine and on others, by TorchRL's `RayCollector`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector

from lit_gfs.collectors.direct import DirectCollector
from lit_gfs.collectors.policy import Policy
from lit_gfs.collectors.shipped_policy import VERSION, packed, present_state, unpacked
from lit_gfs.collectors.step_timeout import StepTimeout, end_process
from lit_gfs.envs import make_env
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.errors import EnvironmentFault, RunFault, UserError, in_one_line
from lit_gfs.utils.ray_cluster import import_ray, keeping_signals
from lit_gfs.utils.seeding import derive_seed, seed_generators
from lit_gfs.utils.trust import TRUSTED


class RemoteEnvs:
    """The environments of remote collectors, as far as the learner's process knows them.

    Args:
        env_id: Id of the environments, as in `lit_gfs.envs.make_env`.
        num_envs: Environments that one remote collector steps together.
        collectors: Number of remote collectors.
        options: Options of the environment's suite.
        address: Address of the Ray cluster, or ``auto`` for the one that this machine is part of; ``None``
            starts one on this machine, for this run alone.
        step_timeout: Seconds that one environment's step may take; ``None`` waits forever.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        collectors: int,
        options: dict[str, Any],
        address: str | None = None,
        step_timeout: float | None = None,
    ) -> None:
        self.env_id = env_id
        self.collectors = collectors
        self.batch_size = torch.Size([collectors * num_envs])
        self.address = address
        self.make = functools.partial(
            _make_env, env_id, num_envs, options, step_timeout, trusted=frozenset(TRUSTED)
        )
        self.seed = 0
        self.open_episodes = 0
        """Episodes that had not ended at the end of the last rollout."""

    def set_seed(self, seed: int) -> None:
        """Set the seed from which the next reset derives those of all collectors."""
        self.seed = seed

    def close(self) -> None:
        """Do nothing: the environments end with their collectors."""


def _make_env(
    env_id: str,
    num_envs: int,
    options: dict[str, Any],
    step_timeout: float | None,
    trusted: frozenset[str],
) -> BatchedEnv:
    """Make the environments of one remote collector, in its process."""
    TRUSTED.update(trusted)
    env = make_env(env_id, num_envs, **options)
    if not isinstance(env, BatchedEnv):
        raise UserError(f"data.remote_collectors is for simulators on CPUs, but {env_id} is in tensors")
    if step_timeout is not None:
        # Where a simulator cannot be interrupted, the learner sees this process end.
        StepTimeout(step_timeout, lambda fault: end_process(fault.status)).watch(env_id, env.activity)
    return env


class RemoteWorker(DirectCollector):
    """The collector in a remote process.

    Args:
        create_env_fn: Makes the environments.
        policy_factory: Makes the `lit_gfs.collectors.shipped_policy.ShippedPolicy`.
        frames_per_batch: Most environment steps in a rollout.
        options: Further options that TorchRL's `RayCollector` passes on; they have their defaults here.
    """

    def __init__(
        self,
        create_env_fn: Callable[[], BatchedEnv],
        policy_factory: Callable[[], Any],
        frames_per_batch: int,
        **options: Any,
    ) -> None:
        self._policy = policy_factory()
        super().__init__(
            create_env_fn(),
            self._policy,
            frames_per_batch=frames_per_batch,
            total_frames=-1,
            track_traj_ids=False,
            trust_policy=True,
            auto_register_policy_transforms=False,
            return_same_td=True,
            policy_device="cpu",
            env_device="cpu",
            storing_device="cpu",
        )

    def __bool__(self) -> bool:
        """Return true: Ray asks even if this could not be made, and TorchRL would count batches."""
        return True

    def prepare(self, steps: int, policy: dict[str, Any]) -> None:
        """Get ready for a rollout.

        Args:
            steps: Its vector steps.
            policy: The weights and settings, see `ShippedPolicy.receive`.
        """
        self.steps = steps
        self._policy.receive(policy)

    def begin_anew(self, seed: int) -> None:
        """Reset all environments, and seed them and all generators of this process."""
        seed_generators(derive_seed("generators", seed))
        self.env.set_seed(derive_seed("environments", seed))
        self.reset()


class RemoteCollector:
    """Rollouts of environments in several processes, which may be on several machines.

    Every rollout ``(collectors * num_envs, T)`` has a part from each collector, always in the same order. All
    parts are collected with the same weights: those of the present moment or, with ``runs_ahead``, those from
    before the previous rollout was learned from. One that was begun ahead may have other steps than `steps`.

    Args:
        env: The environments.
        agent: The agent whose policy acts.
        policy: This policy.
        steps: Most vector steps in a rollout.
        runs_ahead: Whether the next rollout is collected while the agent learns from this one.

    Raises:
        UserError: If Ray is not installed, or the cluster has too few CPUs.
        RunFault: If the collectors cannot be started.
    """

    is_direct = False

    def __init__(self, env: RemoteEnvs, agent: Any, policy: Policy, steps: int, runs_ahead: bool) -> None:
        self.steps = steps
        self.policy_lag = 0
        """Optimizer steps that the agent had taken since the weights of the last rollout's policy."""
        self._env = env
        self._agent = agent
        self._policy = policy
        self._runs_ahead = runs_ahead
        self._next: Future[TensorDictBase] | None = None
        self._has_started_ray = _connect(env)
        try:
            with self._naming_faults():
                self._collector = _ray_collector(
                    env, functools.partial(unpacked, packed(agent, policy)), steps
                )
        except BaseException:
            self._disconnect()
            raise
        self._rollouts = iter(self._collector)
        # One thread, so that the parts of a rollout are asked for and awaited in order.
        self._thread = ThreadPoolExecutor(1, "remote-collection")

    def __iter__(self) -> Iterator[TensorDictBase]:
        """Yield rollouts forever."""
        while True:
            yield self._rollout()

    def _rollout(self) -> TensorDictBase:
        with self._naming_faults():
            ahead, self._next = self._next, None
            # One that was begun ahead has as many steps as were asked for then: the environments are after
            # its last step, so that none can be left out.
            rollout = (ahead or self._begin()).result()
            if self._runs_ahead:
                self._next = self._begin()
        rollout = rollout.flatten(0, 1)  # collectors and their environments
        version = int(rollout.pop(VERSION)[0, 0])
        self.policy_lag = self._agent.global_step - version
        self._env.open_episodes = int((~rollout["next", "done"][:, -1]).sum())
        return rollout

    def _begin(self) -> Future[TensorDictBase]:
        """Send the present weights to all collectors, and let them collect a rollout."""
        import ray

        state = ray.put(present_state(self._agent, self._policy, self._agent.global_step))
        self._call("prepare", self.steps, state)
        return self._thread.submit(next, self._rollouts)

    def reset(self) -> None:
        """Begin new episodes, and drop a rollout that was begun."""
        with self._naming_faults():
            if self._next is not None:
                self._next.result()
                self._next = None
            seeds = [
                derive_seed("collector", self._env.seed, number) for number in range(self._env.collectors)
            ]
            self._collector.map_fn("begin_anew", list_of_args=[(seed,) for seed in seeds])

    def snapshot(self) -> None:
        """Return ``None``: the environments cannot be restored."""

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Never called, as there are no snapshots."""
        raise NotImplementedError

    def _call(self, method: str, *arguments: Any) -> None:
        self._collector.map_fn(method, list_of_args=[arguments] * self._env.collectors)

    def shutdown(self) -> None:
        """End all collectors, and the Ray cluster that was started for them."""
        self._collector.shutdown()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._disconnect()

    def _disconnect(self) -> None:
        import ray

        if self._has_started_ray:
            ray.shutdown()

    @contextmanager
    def _naming_faults(self) -> Iterator[None]:
        """Raise what an environment has raised, and name a collector that is gone."""
        from ray import exceptions

        try:
            yield
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, RunFault | UserError):
                raise cause from error
            raise
        except exceptions.RayActorError as error:
            # The traceback has what Ray says about it.
            what = (
                f"could not be made by a remote collector: {_last_line(error)}"
                if error.actor_init_failed
                else "lost a remote collector: it was killed, or crashed, or its machine is gone"
            )
            raise EnvironmentFault(self._env.env_id, None, what) from error


def _connect(env: RemoteEnvs) -> bool:
    """Connect to the Ray cluster, or start one on this machine; return whether this is new."""
    ray = import_ray("data.remote_collectors")
    if is_new := not ray.is_initialized():
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        try:
            with keeping_signals():
                if env.address is None:
                    # As many places as there are collectors, even if their simulators have to share CPUs.
                    ray.init("local", num_cpus=env.collectors, include_dashboard=False, **quiet)
                else:
                    ray.init(env.address, **quiet)
        except ConnectionError as error:
            raise UserError(
                f"data.ray_address is {env.address!r}, where no Ray cluster answers; expected the "
                "address that `ray start --head` prints"
            ) from error
        except Exception as error:
            # Ray has no class for a start that failed, or for another version of Ray at the address.
            why = in_one_line(error).rstrip(".")
            raise EnvironmentFault(
                env.env_id, None, f"has no remote collectors, as Ray did not start: {why}"
            ) from error
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < env.collectors:
        raise UserError(
            f"data.remote_collectors is {env.collectors}, but the Ray cluster has {cpus} CPUs; expected at "
            "most one remote collector for each"
        )
    return is_new


def _ray_collector(env: RemoteEnvs, policy_factory: Callable[[], Policy], steps: int) -> Any:
    from torchrl.collectors.distributed import RayCollector

    return RayCollector(
        [env.make] * env.collectors,
        policy_factory=policy_factory,
        collector_class=cast(type[Collector], RemoteWorker),
        frames_per_batch=env.batch_size.numel() * steps,
        total_frames=sys.maxsize,  # with its default of -1 it ends before the first rollout
        remote_configs={"num_cpus": 1},
        sync=True,
        # Ray's store brings the weights to each machine once, see `RemoteWorker.prepare`.
        weight_sync_schemes={},
    )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else in_one_line(error)
