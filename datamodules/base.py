"""The datamodule that owns environments for learning, from replay and from rollouts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_warn
from torchrl.envs import EnvBase

from lit_gfs.collectors.env_runner import EnvRunner
from lit_gfs.collectors.remote import RemoteEnvs
from lit_gfs.datamodules.evaluated import EvaluatedDataModule
from lit_gfs.envs.closing import close_env
from lit_gfs.envs.task_stream import TaskStream
from lit_gfs.envs.tensor import TensorEnv
from lit_gfs.errors import UserError, require_at_least, require_positive
from lit_gfs.utils.memory import require_memory
from lit_gfs.utils.ranks import gather

_SIMULATOR_BYTES = 10_000
"""The least memory of one environment's simulator, but for CartPole's few numbers."""


class EnvDataModule(EvaluatedDataModule):
    """Environments for learning, their collector, and the checkpoints of both.

    Args:
        env_id: ``CartPole-v1``, ``ALE/Pong-v5``, ``dm_control/walker-walk-v0`` ...
        num_envs: Environments stepped together, in each process, or in each remote collector.
        overlap: Whether the environments take their next step while the agent learns. The policy from before
            the update, or before all updates of a rollout, then chooses its actions: one step of policy lag.
            It saves time on Atari, whose simulator has its own threads. Remote collectors collect the whole
            next rollout meanwhile: one rollout of policy lag.
        checkpoint_every: Environment steps between resumable checkpoints (``last.ckpt``), rounded up to the
            end of a rollout or, with replay, to an evaluation; ``null`` writes one whenever an evaluation is
            due, but leaves episodes room where a checkpoint cuts them.
        remote_collectors: Processes that collect, on this machine or on others of a Ray cluster, each with
            ``num_envs`` environments; 0 collects in the process that learns.
        ray_address: Address of the Ray cluster, or ``auto`` for the one that this machine is part of;
            ``null`` starts one on this machine.
        options: The environment, evaluations, and the length of the run, see `EvaluatedDataModule`.

    Raises:
        UserError: If the environment or an option of it is unknown, or a number is out of range.
        EnvironmentFault: If the environment cannot be made.
    """

    runner: EnvRunner | None = None
    """What collects, from the first batch on."""

    def __init__(
        self,
        env_id: str,
        *,
        num_envs: int = 1,
        overlap: bool = False,
        checkpoint_every: int | None = None,
        remote_collectors: int = 0,
        ray_address: str | None = None,
        **options: Any,
    ) -> None:
        require_positive(num_envs=num_envs, checkpoint_every=checkpoint_every)
        require_at_least(0, remote_collectors=remote_collectors)
        if ray_address is not None and not remote_collectors:
            raise UserError("ray_address is for remote collectors, but remote_collectors is 0; expected null")
        require_memory(f"simulators of {num_envs} environments", _SIMULATOR_BYTES * num_envs)
        super().__init__(env_id, **options)
        if remote_collectors and issubclass(self._env_class, TaskStream | TensorEnv):
            kind = "a stream of tasks" if issubclass(self._env_class, TaskStream) else "in tensors"
            raise UserError(f"remote_collectors is {remote_collectors}, but {env_id} is {kind}; expected 0")
        self.num_envs = num_envs
        self.overlap = overlap
        self.checkpoint_every = checkpoint_every
        self.remote_collectors = remote_collectors
        self.ray_address = ray_address
        self._restored_runner: dict[str, Any] = {}
        self._evaluated_at = self._checkpointed_at = 0

    @property
    def envs_in_process(self) -> int:
        """Environments that a process learns from: its own, or those of its remote collectors."""
        return self.num_envs * max(1, self.remote_collectors)

    @property
    def task(self) -> int | None:
        """The task that was trained last, as its index in a `TaskStream`; ``None`` in other environments."""
        env = None if self.runner is None else self.runner.env
        return env.task if isinstance(env, TaskStream) else None

    @property
    def env_steps(self) -> int:
        """Environment steps collected so far, over all processes."""
        return self._restored_steps if self.runner is None else self.runner.env_steps

    # -- learning ----------------------------------------------------------------------------------------

    def build_runner(self, steps_per_env: int) -> EnvRunner:
        """Make the environments and the collector; the agent must be on its device already."""
        trainer = cast(Any, self.trainer)
        steps = self.env_steps
        if self.env_spec.max_episode_steps is None:
            rank_zero_warn(
                f"no time limit of {self.env_id} is known, so its episodes may never end; an evaluation cuts "
                f"them after {self.eval_step_limit:,} steps (data.eval_step_limit), and "
                "data.env_options.max_episode_steps cuts them in training too"
            )
        if self.runner is not None:
            self._let_go(self.runner, close_env)
        runner = EnvRunner(
            self._make_remote_envs()
            if self.remote_collectors
            else self._watched(self._make_env(self.num_envs)),
            trainer.lightning_module,
            steps_per_env,
            self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            precision=trainer.precision_plugin.forward_context,
            before_rollout=self._raise_if_interrupted,
            runs_ahead=self.overlap,
            env_steps=steps,
        )
        runner.load_state_dict(self._restored_runner)
        self._restored_runner = {}
        self.runner = runner
        return runner

    def end_pass(self, evaluates: bool = True) -> None:
        """Decide whether a checkpoint is due at the end of the pass; its last batch comes next.

        Where a checkpoint cuts episodes, a run without checkpoints cuts them at the same steps: both train
        alike.

        Args:
            evaluates: Whether an evaluation follows.
        """
        runner = self.runner
        assert runner is not None
        if self.checkpoint_every is None and runner.is_restorable:
            due = evaluates
        else:
            due = self.env_steps - self._checkpointed_at >= self._steps_between_checkpoints(runner)
        self.checkpoint_is_due = due or self.env_steps >= self.total_steps
        if self.checkpoint_is_due:
            self._checkpointed_at = self.env_steps
            if not runner.is_restorable:
                runner.request_barrier()

    def _steps_between_checkpoints(self, runner: EnvRunner) -> int:
        """Return how long episodes go uncut: the user's choice, or time for about twenty of them.

        A run has at least four checkpoints, so that a fault loses no more than a quarter of it.
        """
        if self.checkpoint_every is not None:
            return self.checkpoint_every
        least_often = max(1, self.total_steps // 4)
        limit = self.env_spec.max_episode_steps
        return least_often if limit is None else min(least_often, 20 * limit * runner.vector_step)

    # -- checkpoints -------------------------------------------------------------------------------------

    def fixed_settings(self) -> dict[str, Any]:
        """Return the settings that must not change when a run is resumed."""
        collecting = {"num_envs": self.num_envs, "remote_collectors": self.remote_collectors}
        return {**super().fixed_settings(), **collecting}

    def state_dict(self) -> dict[str, Any]:
        """Return the step count, and the state of each process's environments and generators."""
        state = super().state_dict()
        if not self.is_for_evaluating:
            state["evaluated_at"], state["checkpointed_at"] = self._evaluated_at, self._checkpointed_at
            state["experience"] = gather({} if self.runner is None else self.runner.state_dict())
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step count and, in fitting, the environments and generators.

        Raises:
            UserError: If fitting resumes with a setting that must not change.
        """
        super().load_state_dict(state_dict)
        steps = self._restored_steps
        self._evaluated_at = state_dict.get("evaluated_at", steps)
        self._checkpointed_at = state_dict.get("checkpointed_at", steps)
        if not self._is_fitting:
            return
        rank = cast(Any, self.trainer).global_rank
        is_exact = "experience" in state_dict and not self.fresh_experience
        self._restored_runner = state_dict["experience"][rank] if is_exact else {}
        if self.runner is not None:
            self.runner.env_steps = steps
            self.runner.load_state_dict(self._restored_runner)

    # -- environments ------------------------------------------------------------------------------------

    def undisturbed(self) -> AbstractContextManager[Any]:
        """Let an evaluation draw without effect on the later draws of training, or on a checkpoint."""
        return super().undisturbed() if self.runner is None else self.runner.undisturbed()

    def _release_envs(self, let_go: Callable[[EnvBase], None]) -> None:
        if self.runner is not None:
            self._restored_steps = self.runner.env_steps
            self._let_go(self.runner, let_go)
            self.runner = None
        super()._release_envs(let_go)

    @staticmethod
    def _let_go(runner: EnvRunner, let_go: Callable[[EnvBase], None]) -> None:
        if not isinstance(runner.env, RemoteEnvs):
            let_go(runner.env)
        runner.close()

    def _make_remote_envs(self) -> RemoteEnvs:
        return RemoteEnvs(
            self.env_id,
            self.num_envs,
            self.remote_collectors,
            self.env_options,
            self.ray_address,
            self.step_timeout,
        )
