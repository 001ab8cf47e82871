"""The datamodule that owns environments, for learning from replay and from rollouts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from lit_gfs.collectors.env_runner import EnvRunner
from lit_gfs.collectors.evaluation import (
    DEFAULT_LIMIT,
    Evaluation,
    EvaluationLoader,
    no_episodes,
    run_episodes,
)
from lit_gfs.collectors.remote import RemoteEnvs
from lit_gfs.collectors.step_timeout import StepTimeout, end_process
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.envs.closing import close_env, leave_open
from lit_gfs.envs.make import complete_options
from lit_gfs.envs.task_stream import TaskStream
from lit_gfs.envs.tensor import TensorEnv
from lit_gfs.errors import STOPS, EnvironmentFault, UserError, in_one_line
from lit_gfs.runs.announcements import announce
from lit_gfs.runs.trainer_checks import (
    require_evaluation_between_epochs,
    require_precision,
    require_whole_passes,
)
from lit_gfs.utils.given_arguments import RemembersArguments
from lit_gfs.utils.memory import require_memory
from lit_gfs.utils.ranks import gather, share
from lit_gfs.utils.seeding import derive_seed, isolated_generators, run_seed, seed_generators
from lit_gfs.utils.transfers import send
from lit_gfs.utils.video import write_video
from lit_gfs.utils.working_directory import working_directory


def require_positive(**values: int) -> None:
    """Check counts that a user gave.

    Raises:
        UserError: If one of them is less than 1.
    """
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name} is {value}; expected a whole number of at least 1")


FRESH_EXPERIENCE = "--fresh_experience true"
"""The option of the command line that resumes without the experience of a checkpoint."""

_SIMULATOR_BYTES = 10_000
"""The least memory of one environment's simulator, but for CartPole's few numbers."""


_NAMED_ELSEWHERE = {
    "env_id": "data.env_id",
    "num_envs": "data.num_envs",
    "seed": "data.seed",
    "render": "data.video",
}
"""Arguments of `make_env` that are no options of a suite, and the setting that decides on them."""


class EnvDataModule(LightningDataModule, RemembersArguments):
    """Environments for learning and for evaluation, and the count of environment steps.

    Args:
        env_id: ``CartPole-v1``, ``ALE/Pong-v5``, ``dm_control/walker-walk-v0`` ...
        num_envs: Environments stepped together, in each process, or in each remote collector.
        total_steps: Environment steps (agent decisions, summed over all environments) that the run lasts.
        eval_every: Environment steps between evaluations: rounded up to whole rollouts, or at most so many
            with replay, where evaluations are evenly spaced.
        eval_episodes: Full episodes in an evaluation, shared out over all processes.
        env_options: Options of the environment's suite, such as ``repeat_action_probability`` on Atari.
        seed: Seed of the environments; ``null`` takes that of ``seed_everything``.
        video: Whether ``test`` writes ``episode.mp4``, a video of one episode, beside the checkpoint.
        step_timeout: Seconds that one environment's step may take before the run ends with an error; ``null``
            waits forever.
        overlap: Whether the environments take their next step while the agent learns. The policy from before
            the update, or before all updates of a rollout, then chooses its actions: one step of policy lag.
            It saves time on Atari, whose simulator has its own threads. Remote collectors collect the whole
            next rollout meanwhile: one rollout of policy lag.
        checkpoint_every: Environment steps between resumable checkpoints (``last.ckpt``), rounded up to the
            end of a rollout or, with replay, to an evaluation; ``null`` writes one whenever an evaluation is
            due, but leaves episodes room where a checkpoint cuts them.
        eval_step_limit: Steps after which an evaluation cuts an episode; ``null`` takes the environment's
            time limit or, where that is not known, 10,000.
        remote_collectors: Processes that collect, on this machine or on others of a Ray cluster, each with
            ``num_envs`` environments; 0 collects in the process that learns.
        ray_address: Address of the Ray cluster, or ``auto`` for the one that this machine is part of;
            ``null`` starts one on this machine.

    Raises:
        UserError: If the environment or an option of it is unknown, or a number is out of range.
        EnvironmentFault: If the environment cannot be made.
    """

    def __init__(
        self,
        env_id: str,
        *,
        num_envs: int = 1,
        total_steps: int = 1_000_000,
        eval_every: int = 50_000,
        eval_episodes: int = 10,
        env_options: dict[str, Any] | None = None,
        seed: int | None = None,
        video: bool = False,
        step_timeout: float | None = 300.0,
        overlap: bool = False,
        checkpoint_every: int | None = None,
        eval_step_limit: int | None = None,
        remote_collectors: int = 0,
        ray_address: str | None = None,
    ) -> None:
        super().__init__()
        require_positive(
            num_envs=num_envs, total_steps=total_steps, eval_every=eval_every, eval_episodes=eval_episodes
        )
        optional = {"checkpoint_every": checkpoint_every, "eval_step_limit": eval_step_limit}
        require_positive(**{name: value for name, value in optional.items() if value is not None})
        if seed is not None and seed < 0:
            raise UserError(f"seed is {seed}; expected a whole number of at least 0")
        if step_timeout is not None and not step_timeout > 0:
            raise UserError(
                f"step_timeout is {step_timeout:g}; expected seconds above 0, or null to switch it off"
            )
        if remote_collectors < 0:
            raise UserError(
                f"remote_collectors is {remote_collectors}; expected a whole number of at least 0"
            )
        if ray_address is not None and not remote_collectors:
            raise UserError("ray_address is for remote collectors, but remote_collectors is 0; expected null")
        for option in env_options or {}:
            if option in _NAMED_ELSEWHERE:
                raise UserError(f"env_options has {option!r}; expected {_NAMED_ELSEWHERE[option]} instead")
            if not isinstance(option, str):
                raise UserError(f"env_options has {option!r}; expected names of options")
        require_memory(f"simulators of {num_envs} environments", _SIMULATOR_BYTES * num_envs)
        self.env_id = env_id
        self.num_envs = num_envs
        self.total_steps = total_steps
        self.eval_every = eval_every
        self.eval_episodes = eval_episodes
        self.env_options = env_options or {}
        self.seed = run_seed() if seed is None else seed
        self.video = video
        self.step_timeout = step_timeout
        self.overlap = overlap
        self.checkpoint_every = checkpoint_every
        self.remote_collectors = remote_collectors
        self.ray_address = ray_address
        self.checkpoint_is_due = False
        """Whether the end of this pass writes the checkpoint to resume from."""
        self.is_for_evaluating = False
        """Whether the checkpoint that is being written is for evaluating: no run resumes from it exactly."""
        self.fresh_experience = False
        """Whether a resumed run leaves the environments and transitions of its checkpoint aside."""
        self.runner: EnvRunner | None = None
        self._step_timeout = None if step_timeout is None else StepTimeout(step_timeout, self._give_up)
        self._interrupted = False
        self.while_evaluating: Callable[[], None] = lambda: None
        """Called before each step of an evaluation: Lightning calls no hook there."""
        self._eval_env: EnvBase | None = None
        self._restored_steps = 0
        self._restored_runner: dict[str, Any] = {}
        self._evaluated_at = self._checkpointed_at = 0
        probe = self._watched(self._make_env(1))
        try:
            self._env_spec = EnvSpec.from_env(probe)
        finally:
            close_env(probe)
            self._stop_watching()
        if remote_collectors and isinstance(probe, TaskStream | TensorEnv):
            kind = "a stream of tasks" if isinstance(probe, TaskStream) else "in tensors"
            raise UserError(f"remote_collectors is {remote_collectors}, but {env_id} is {kind}; expected 0")
        self.eval_step_limit = eval_step_limit or self._env_spec.max_episode_steps or DEFAULT_LIMIT

    @property
    def env_spec(self) -> EnvSpec:
        """The environment's spaces, for the agent."""
        return self._env_spec

    @property
    def complete_env_options(self) -> dict[str, Any]:
        """The options of the environments with their defaults, such as the sticky actions of Atari."""
        return complete_options(self.env_id, self.env_options)

    @property
    def envs_in_process(self) -> int:
        """Environments that a process learns from: its own, or those of its remote collectors."""
        return self.num_envs * max(1, self.remote_collectors)

    @property
    def observation_bytes(self) -> int:
        """Bytes of one observation."""
        itemsize = getattr(torch, self.env_spec.observation_dtype).itemsize
        return itemsize * math.prod(self.env_spec.observation_shape)

    @property
    def frame_skip(self) -> int:
        """Simulator frames per environment step."""
        return self._env_spec.frame_skip

    @property
    def task(self) -> int | None:
        """The task that was trained last, as its index in a `TaskStream`; ``None`` in other environments."""
        env = None if self.runner is None else self.runner.env
        return env.task if isinstance(env, TaskStream) else None

    @property
    def planned_batches(self) -> int:
        """Batches of the whole run; a monitor paces itself by them."""
        raise NotImplementedError

    @property
    def env_steps(self) -> int:
        """Environment steps collected so far, over all processes."""
        return self._restored_steps if self.runner is None else self.runner.env_steps

    def setup(self, stage: str) -> None:
        """Check the Trainer's options.

        Raises:
            UserError: If an option conflicts with counting in environment steps.
        """
        trainer = cast(Any, self.trainer)
        require_precision(trainer)
        require_evaluation_between_epochs(trainer)
        require_whole_passes(trainer, "data.total_steps and data.eval_every say how long to train")
        if stage == "fit" and trainer.reload_dataloaders_every_n_epochs:
            raise UserError(
                "trainer.reload_dataloaders_every_n_epochs would throw experience away; expected 0"
            )

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

    @contextmanager
    def saved_for_evaluating(self) -> Iterator[None]:
        """Make checkpoints within this context hold no environments, and cut no episode."""
        self.is_for_evaluating = True
        try:
            yield
        finally:
            self.is_for_evaluating = False

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Send transitions to another device, without waiting for the copy.

        An `Evaluation` and ``None`` stay, and so do transitions for the CPU, where they were made: checking
        them would take as long as a small layer.
        """
        return send(batch, device) if device.type != "cpu" and isinstance(batch, TensorDictBase) else batch

    def fixed_settings(self) -> dict[str, Any]:
        """Return the settings that must not change when a run is resumed."""
        return {
            "env_id": self.env_id,
            "num_envs": self.num_envs,
            "remote_collectors": self.remote_collectors,
            "trainer.world_size": cast(Any, self.trainer).world_size,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the step count, and the state of each process's environments and generators."""
        state: dict[str, Any] = {"env_steps": self.env_steps, "settings": self.fixed_settings()}
        if self.is_for_evaluating:
            state["is_for_evaluating"] = True
        else:
            state["evaluated_at"], state["checkpointed_at"] = self._evaluated_at, self._checkpointed_at
            state["experience"] = gather({} if self.runner is None else self.runner.state_dict())
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step count and, in fitting, the environments and generators.

        Raises:
            UserError: If fitting resumes with a setting that must not change.
        """
        if cast(Any, self.trainer).state.fn == TrainerFn.FITTING:
            saved = state_dict.get("settings", {})
            for name, value in self.fixed_settings().items():
                if saved.get(name, value) == value or (self.fresh_experience and name != "env_id"):
                    continue
                way_out = (
                    "" if name == "env_id" else f", or {FRESH_EXPERIENCE} to go on with its weights alone"
                )
                raise UserError(
                    f"{name} is {value}, but the checkpoint was written with {name} {saved[name]}; expected "
                    f"the same{way_out}"
                )
        steps = state_dict["env_steps"]
        if type(steps) is not int or steps < 0:
            raise UserError(f"the checkpoint counts {steps!r} environment steps; expected a whole number")
        self._restored_steps = steps
        self._evaluated_at = state_dict.get("evaluated_at", steps)
        self._checkpointed_at = state_dict.get("checkpointed_at", steps)
        if cast(Any, self.trainer).state.fn != TrainerFn.FITTING:
            return
        rank = cast(Any, self.trainer).global_rank
        is_exact = "experience" in state_dict and not self.fresh_experience
        self._restored_runner = state_dict["experience"][rank] if is_exact else {}
        if self.runner is not None:
            self.runner.env_steps = steps
            self.runner.load_state_dict(self._restored_runner)

    # -- evaluation --------------------------------------------------------------------------------------

    def val_dataloader(self) -> EvaluationLoader:
        """Return the evaluation that Lightning runs as validation."""
        return EvaluationLoader(Evaluation(self._evaluate))

    def test_dataloader(self) -> EvaluationLoader:
        """Return the same evaluation, with a video if one is asked for."""
        return EvaluationLoader(Evaluation(self._film_and_evaluate if self.video else self._evaluate))

    def _evaluate(self) -> TensorDict:
        """Play this process's share of the episodes."""
        trainer = cast(Any, self.trainer)
        episodes = share(self.eval_episodes, trainer.global_rank, trainer.world_size)
        if episodes == 0:
            return no_episodes()
        if self._eval_env is None:
            self._eval_env = self._watched(self._make_env(min(episodes, 16)))
        played = self._play(self._eval_env, episodes)
        if cut := int(played["cut"].sum()):
            rank_zero_warn(
                f"{cut} of {episodes} evaluation episodes of {self.env_id} were cut after "
                f"{self.eval_step_limit:,} steps (data.eval_step_limit)"
            )
        return played

    def undisturbed(self) -> AbstractContextManager[Any]:
        """Let an evaluation draw without effect on the later draws of training, or on a checkpoint."""
        if self.runner is not None:
            return self.runner.undisturbed()
        return isolated_generators(cast(Any, self.trainer).lightning_module.device)

    def _film_and_evaluate(self) -> TensorDict:
        if not cast(Any, self.trainer).is_global_zero:
            return self._evaluate()
        frames: list[Tensor] = []
        env = self._watched(self._make_env(1, render=True))
        self._play(env, 1, frames)
        close_env(env)
        checkpoint = cast(Any, self.trainer).ckpt_path
        directory = Path(checkpoint).parent if checkpoint else working_directory()
        write_video(directory / "episode.mp4", torch.stack(frames), fps=30)
        return self._evaluate()

    def _play(self, env: EnvBase, episodes: int, frames: list[Tensor] | None = None) -> TensorDict:
        trainer = cast(Any, self.trainer)
        agent = trainer.lightning_module
        if isinstance(env, TensorEnv):
            env.to(agent.device)
        if isinstance(env, TaskStream):
            env.begin_task(env.task_at(max(0, self.env_steps - 1)))
        seed = derive_seed("evaluation", self.seed, trainer.global_rank, self.env_steps)
        # An evaluation must not change the next random numbers of training.
        with self.undisturbed(), trainer.precision_plugin.forward_context():
            seed_generators(seed)
            env.set_seed(seed)
            try:
                return run_episodes(
                    env,
                    agent.eval_policy(),
                    episodes,
                    agent.device,
                    None if frames is None else frames.append,
                    self._before_eval_step,
                    self.eval_step_limit,
                )
            except EnvironmentFault as fault:
                fault.env_steps = self.env_steps
                raise

    # -- ending early ------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Make the evaluation, or the next rollout, end the run with a ``SIGTERMException``."""
        self._interrupted = True

    def _before_eval_step(self) -> None:
        self._raise_if_interrupted()
        self.while_evaluating()

    def _raise_if_interrupted(self) -> None:
        if self._interrupted:
            raise SIGTERMException

    def _watched(self, env: EnvBase) -> EnvBase:
        if self._step_timeout is not None and isinstance(env, BatchedEnv):
            self._step_timeout.watch(env.env_id, env.activity)
        return env

    def _give_up(self, fault: EnvironmentFault) -> None:
        """End the run from the thread that watches: the main thread hangs in the simulator."""
        try:
            if self.trainer is not None:
                trainer = cast(Any, self.trainer)
                fault.env_steps = self.env_steps
                for callback in trainer.callbacks:
                    callback.on_exception(trainer, trainer.lightning_module, fault)
                for logger in trainer.loggers:
                    logger.finalize("failed")
        finally:
            if announce(fault.status):
                print("lit_gfs: error:", fault, file=sys.stderr)
            end_process(fault.status)

    def on_exception(self, exception: BaseException) -> None:
        """Close every environment, unless one may hang or be in the middle of a step."""
        self._release(leave_open if isinstance(exception, (EnvironmentFault, *STOPS)) else close_env)

    def _release(self, let_go: Callable[[EnvBase], None]) -> None:
        if self._step_timeout is not None:
            self._step_timeout.keep_signal()
        if self.runner is not None:
            self._restored_steps = self.runner.env_steps
            self._let_go(self.runner, let_go)
            self.runner = None
        if self._eval_env is not None:
            let_go(self._eval_env)
            self._eval_env = None
        self._stop_watching()

    @staticmethod
    def _let_go(runner: EnvRunner, let_go: Callable[[EnvBase], None]) -> None:
        if not isinstance(runner.env, RemoteEnvs):
            let_go(runner.env)
        runner.close()

    def _stop_watching(self) -> None:
        self._interrupted = False
        if self._step_timeout is not None:
            self._step_timeout.stop()

    def teardown(self, stage: str) -> None:
        """Close every environment."""
        self._release(close_env)

    def _make_remote_envs(self) -> RemoteEnvs:
        return RemoteEnvs(
            self.env_id,
            self.num_envs,
            self.remote_collectors,
            self.env_options,
            self.ray_address,
            self.step_timeout,
        )

    def _make_env(self, num_envs: int, **options: Any) -> EnvBase:
        try:
            return make_env(self.env_id, num_envs, **self.env_options, **options)
        except (UserError, EnvironmentFault, *STOPS):
            raise
        except BaseException as error:
            fault = EnvironmentFault(self.env_id, None, f"could not be made: {in_one_line(error)}")
            fault.env_steps = None if self.runner is None else self.env_steps
            raise fault from error
