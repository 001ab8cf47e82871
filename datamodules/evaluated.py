"""The datamodule of agents that are evaluated in environments, wherever their experience comes from."""

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

from lit_gfs.collectors.evaluation import (
    DEFAULT_LIMIT,
    Evaluation,
    EvaluationLoader,
    no_episodes,
    run_episodes,
)
from lit_gfs.collectors.step_timeout import StepTimeout, end_process
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.envs.closing import close_env, leave_open
from lit_gfs.envs.make import complete_options
from lit_gfs.envs.task_stream import TaskStream
from lit_gfs.envs.tensor import TensorEnv
from lit_gfs.errors import STOPS, EnvironmentFault, UserError, in_one_line, require_positive
from lit_gfs.runs.announcements import announce
from lit_gfs.runs.trainer_checks import (
    require_evaluation_between_epochs,
    require_precision,
    require_whole_passes,
)
from lit_gfs.utils.given_arguments import RemembersArguments
from lit_gfs.utils.ranks import share
from lit_gfs.utils.seeding import derive_seed, isolated_generators, run_seed, seed_generators
from lit_gfs.utils.transfers import send
from lit_gfs.utils.video import write_video
from lit_gfs.utils.working_directory import working_directory

FRESH_EXPERIENCE = "--fresh_experience true"
"""The option of the command line that resumes without the experience of a checkpoint."""

_NAMED_ELSEWHERE = {
    "env_id": "data.env_id",
    "num_envs": "data.num_envs",
    "seed": "data.seed",
    "render": "data.video",
}
"""Arguments of `make_env` that are no options of a suite, and the setting that decides on them."""


class EvaluatedDataModule(LightningDataModule, RemembersArguments):
    """Environments for evaluation, and the count of steps that a run is measured by.

    A subclass says where experience comes from: it writes ``train_dataloader`` and `planned_batches`, and
    counts `env_steps`.

    Args:
        env_id: ``CartPole-v1``, ``ALE/Pong-v5``, ``dm_control/walker-walk-v0`` ...
        total_steps: Environment steps (agent decisions, summed over all environments) that the run lasts.
        eval_every: Environment steps between evaluations: rounded up to whole rollouts, or at most so many
            with replay, where evaluations are evenly spaced.
        eval_episodes: Full episodes in an evaluation, shared out over all processes.
        env_options: Options of the environment's suite, such as ``repeat_action_probability`` on Atari.
        seed: Seed of the environments; ``null`` takes that of ``seed_everything``.
        video: Whether ``test`` writes ``episode.mp4``, a video of one episode, beside the checkpoint.
        step_timeout: Seconds that one environment's step may take before the run ends with an error; ``null``
            waits forever.
        eval_step_limit: Steps after which an evaluation cuts an episode; ``null`` takes the environment's
            time limit or, where that is not known, 10,000.

    Raises:
        UserError: If the environment or an option of it is unknown, or a number is out of range.
        EnvironmentFault: If the environment cannot be made.
    """

    def __init__(
        self,
        env_id: str,
        *,
        total_steps: int = 1_000_000,
        eval_every: int = 50_000,
        eval_episodes: int = 10,
        env_options: dict[str, Any] | None = None,
        seed: int | None = None,
        video: bool = False,
        step_timeout: float | None = 300.0,
        eval_step_limit: int | None = None,
    ) -> None:
        super().__init__()
        require_positive(
            total_steps=total_steps,
            eval_every=eval_every,
            eval_episodes=eval_episodes,
            eval_step_limit=eval_step_limit,
        )
        if step_timeout is not None and not step_timeout > 0:
            raise UserError(
                f"step_timeout is {step_timeout:g}; expected seconds above 0, or null to switch it off"
            )
        for option in env_options or {}:
            if option in _NAMED_ELSEWHERE:
                raise UserError(f"env_options has {option!r}; expected {_NAMED_ELSEWHERE[option]} instead")
            if not isinstance(option, str):
                raise UserError(f"env_options has {option!r}; expected names of options")
        self.env_id = env_id
        self.total_steps = total_steps
        self.eval_every = eval_every
        self.eval_episodes = eval_episodes
        self.env_options = env_options or {}
        self.seed = run_seed(seed)
        self.video = video
        self.step_timeout = step_timeout
        self.checkpoint_is_due = False
        """Whether the end of this pass writes the checkpoint to resume from."""
        self.is_for_evaluating = False
        """Whether the checkpoint that is being written is for evaluating: no run resumes from it exactly."""
        self.fresh_experience = False
        """Whether a resumed run leaves the environments and transitions of its checkpoint aside."""
        self.while_evaluating: Callable[[], None] = lambda: None
        """Called before each step of an evaluation: Lightning calls no hook there."""
        self._step_timeout = None if step_timeout is None else StepTimeout(step_timeout, self._give_up)
        self._interrupted = False
        self._eval_env: EnvBase | None = None
        self._restored_steps = 0
        probe = self._watched(self._make_env(1))
        try:
            self._env_spec = EnvSpec.from_env(probe)
        finally:
            close_env(probe)
            self._stop_watching()
        self._env_class = type(probe)
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
        return None

    @property
    def planned_batches(self) -> int:
        """Batches of the whole run; a monitor paces itself by them."""
        raise NotImplementedError

    @property
    def env_steps(self) -> int:
        """Steps so far, over all processes."""
        return self._restored_steps

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

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Send transitions to another device, without waiting for the copy.

        An `Evaluation` and ``None`` stay, and so do transitions for the CPU, where they were made: checking
        them would take as long as a small layer.
        """
        return send(batch, device) if device.type != "cpu" and isinstance(batch, TensorDictBase) else batch

    # -- checkpoints -------------------------------------------------------------------------------------

    @contextmanager
    def saved_for_evaluating(self) -> Iterator[None]:
        """Make checkpoints within this context hold no environments, and cut no episode."""
        self.is_for_evaluating = True
        try:
            yield
        finally:
            self.is_for_evaluating = False

    def fixed_settings(self) -> dict[str, Any]:
        """Return the settings that must not change when a run is resumed."""
        return {"env_id": self.env_id, "trainer.world_size": cast(Any, self.trainer).world_size}

    def state_dict(self) -> dict[str, Any]:
        """Return the step count, and the settings that must not change."""
        state: dict[str, Any] = {"env_steps": self.env_steps, "settings": self.fixed_settings()}
        return {**state, "is_for_evaluating": True} if self.is_for_evaluating else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step count.

        Raises:
            UserError: If fitting resumes with a setting that must not change.
        """
        if self._is_fitting:
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

    @property
    def _is_fitting(self) -> bool:
        return cast(Any, self.trainer).state.fn == TrainerFn.FITTING

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
        return isolated_generators(cast(Any, self.trainer).lightning_module.device)

    def _film_and_evaluate(self) -> TensorDict:
        if not cast(Any, self.trainer).is_global_zero:
            return self._evaluate()
        frames: list[Tensor] = []
        env = self._watched(self._make_env(1, render=True))
        try:
            self._play(env, 1, frames)
        finally:
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
        self._release_envs(let_go)
        self._stop_watching()

    def _release_envs(self, let_go: Callable[[EnvBase], None]) -> None:
        """Let go of all environments."""
        if self._eval_env is not None:
            let_go(self._eval_env)
            self._eval_env = None

    def _stop_watching(self) -> None:
        self._interrupted = False
        if self._step_timeout is not None:
            self._step_timeout.stop()

    def teardown(self, stage: str) -> None:
        """Close every environment."""
        self._release(close_env)

    def _make_env(self, num_envs: int, **options: Any) -> EnvBase:
        try:
            return make_env(self.env_id, num_envs, **self.env_options, **options)
        except (UserError, EnvironmentFault, *STOPS):
            raise
        except BaseException as error:
            fault = EnvironmentFault(self.env_id, None, f"could not be made: {in_one_line(error)}")
            fault.env_steps = self.env_steps or None  # none before the run has begun
            raise fault from error
