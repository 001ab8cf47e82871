"""Data for off-policy agents: transitions are stored once and sampled many times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer

from lit_gfs.buffers.frame_stacks import FrameStackStorage
from lit_gfs.buffers.prioritized import PrioritizedReplay, PrioritizedSampler, prioritized_replay_buffer
from lit_gfs.buffers.ring import RingStorage
from lit_gfs.buffers.shards import ReplayShards, find_replay, replay_name
from lit_gfs.buffers.transitions import TransitionStorage
from lit_gfs.buffers.writer import uniform_replay_buffer
from lit_gfs.collectors.env_runner import EnvRunner
from lit_gfs.datamodules.base import EnvDataModule
from lit_gfs.datamodules.resumable_pass import ResumablePass
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError, require_between, require_positive
from lit_gfs.functional.exploration import linear_schedule
from lit_gfs.runs.checkpoint_io import last_checkpoint
from lit_gfs.utils.memory import require_memory
from lit_gfs.utils.ranks import gather


def make_replay_buffer(
    spec: EnvSpec,
    capacity: int,
    num_envs: int,
    batch_size: int,
    n_step: int = 1,
    alpha: float | None = None,
    beta: Callable[[], float] = lambda: 1.0,
) -> ReplayBuffer:
    """Make the replay memory that suits the observations.

    Frame stacks of the shipped suites are stored frame by frame, and rebuilt when they are sampled. Other
    observations are stored whole, including stacks of a user's environment: those may skip frames.

    Args:
        spec: The environment's spaces.
        capacity: Transitions that are kept.
        num_envs: Environments that feed it.
        batch_size: Transitions in a sample.
        n_step: Steps up to the next observation of a sampled transition.
        alpha: Exponent of the priorities; ``None`` draws uniformly, and then samples have no ``weight``.
        beta: Returns the exponent of the importance weights.
    """
    storage: RingStorage = (
        FrameStackStorage(capacity, num_envs, n_step=n_step)
        if spec.is_frame_stack
        else TransitionStorage(capacity, n_step)
    )
    if alpha is None:
        return uniform_replay_buffer(storage, batch_size)
    return prioritized_replay_buffer(storage, batch_size, PrioritizedSampler(storage.max_size, alpha, beta))


class ReplayLoader(ResumablePass):
    """Collects what the replay ratio asks for, then samples: one batch per optimizer step.

    Everything is counted in environment steps: after the first ``learning_starts`` of them, one update falls
    due every ``steps_per_update``, or ``updates_per_step`` of them in every step. Collection ends with the
    vector step that reaches ``total_steps``. Once no further update falls due, the rest of the pass is
    ``None``, which Lightning skips.

    Args:
        runner: Collects transitions.
        buffer: Stores them.
        updates_per_epoch: The length of a pass; an evaluation follows each.
        learning_starts: Environment steps before the first update.
        steps_per_update: Environment steps per update.
        total_steps: Environment steps that the run lasts.
        on_last_batch: Called before the last batch of a pass is handed out.
        updates_per_step: Updates per environment step, where ``steps_per_update`` is 1.
    """

    def __init__(
        self,
        runner: EnvRunner,
        buffer: ReplayBuffer,
        updates_per_epoch: int,
        learning_starts: int,
        steps_per_update: int,
        total_steps: int,
        on_last_batch: Callable[[], None] = lambda: None,
        updates_per_step: int = 1,
    ) -> None:
        super().__init__(on_last_batch)
        self._runner = runner
        self.buffer = buffer
        self._updates_per_epoch = updates_per_epoch
        self._steps_per_update = steps_per_update
        self._updates_per_step = updates_per_step
        # Where a run is resumed without its transitions, it fills the buffer as far as a new run does.
        self._first_update_at = runner.env_steps + learning_starts
        self._last_step = runner.env_steps + whole_steps(total_steps - runner.env_steps, runner.vector_step)
        self._updates = 0

    def __len__(self) -> int:
        return self._updates_per_epoch

    def __next__(self) -> TensorDictBase | None:
        if self._position == len(self):
            raise StopIteration
        if self._runner.pass_barrier(self._updates):
            self.end_episodes()
        # After the last update, what is left of the run's steps is less than an update asks for.
        wanted = self._due_at(self._updates + 1)
        if self._due_at(self._updates + 2) > self._last_step:
            wanted = self._last_step
        while self._runner.env_steps < wanted:
            if self._runner.begin_due_task():
                self.end_episodes()
            left = -(-(wanted - self._runner.env_steps) // self._runner.vector_step)
            self.buffer.extend(self._runner.collect(min(left, self._runner.steps_per_env)))
        self._advance()
        if self._runner.env_steps < self._due_at(self._updates + 1):
            return None
        self._updates += 1
        return self.buffer.sample()

    def _due_at(self, update: int) -> int:
        """Return the environment steps at which an update falls due, the first one being 1."""
        return self._first_update_at + _steps_of(update, self._steps_per_update, self._updates_per_step)

    def end_episodes(self) -> None:
        """End the stored episodes, because the environments are reset."""
        cast(RingStorage, self.buffer.storage).end_episodes()

    def updates_state(self) -> dict[str, int]:
        """Return the counts that decide when the next update falls due."""
        return {
            "updates": self._updates,
            "first_update_at": self._first_update_at,
            "steps_per_update": self._steps_per_update,
            "updates_per_step": self._updates_per_step,
        }

    def load_updates_state(self, state: dict[str, int]) -> None:
        """Restore the counts; later updates fall due at this loader's own rate."""
        self._updates = state["updates"]
        saved_rate = state.get("steps_per_update", self._steps_per_update), state.get("updates_per_step", 1)
        latest_at = state["first_update_at"] + _steps_of(self._updates, *saved_rate)
        self._first_update_at = latest_at - _steps_of(
            self._updates, self._steps_per_update, self._updates_per_step
        )


def _steps_of(updates: int, steps_per_update: int, updates_per_step: int) -> int:
    """Return the environment steps in which so many updates fall due; the last step may have more."""
    return -(-updates * steps_per_update // updates_per_step)


def whole_steps(steps: int, vector_step: int) -> int:
    """Round environment steps up to whole vector steps."""
    return -(-steps // vector_step) * vector_step


class ReplayDataModule(EnvDataModule):
    """Replayed transitions for off-policy agents.

    A Lightning epoch is the stretch between two evaluations. The transitions of a checkpoint lie beside it,
    in ``replay/``. A run that is resumed from a checkpoint without transitions first collects
    ``learning_starts`` steps with its restored policy.

    Args:
        env_id: ``CartPole-v1``, ``ALE/Pong-v5``, ``dm_control/walker-walk-v0`` ...
        buffer_size: Transitions kept, in each process.
        batch_size: Transitions per batch; a batch is an optimizer step, unless gradients are accumulated.
        learning_starts: Environment steps collected before the first optimizer step.
        steps_per_update: Environment steps per batch.
        updates_per_step: Batches per environment step, for more than one: it needs ``steps_per_update`` 1.
        n_step: Steps whose rewards are summed before the target bootstraps (Sutton & Barto 2018, section
            7.1). They end early with the episode.
        priority_exponent: Exponent alpha of the priorities by which transitions are drawn (Schaul et al.
            2016): 0.5 in Rainbow, and 0 makes them all equal. ``null`` draws uniformly.
        importance_exponent: Exponent beta of the weights that undo the bias of priorities, at the start of
            the run; it rises to 1 at its end. Without effect where ``priority_exponent`` is ``null``.
        options: Environments, evaluations and checkpoints, see `EnvDataModule`.

    Raises:
        UserError: If a count is not positive, learning would start after the run's end, an exponent is out of
            range, or both ``steps_per_update`` and ``updates_per_step`` are above 1.
    """

    def __init__(
        self,
        env_id: str,
        *,
        buffer_size: int = 100_000,
        batch_size: int = 32,
        learning_starts: int = 1_000,
        steps_per_update: int = 4,
        updates_per_step: int = 1,
        n_step: int = 1,
        priority_exponent: float | None = None,
        importance_exponent: float = 0.4,
        **options: Any,
    ) -> None:
        super().__init__(env_id, **options)
        require_positive(
            buffer_size=buffer_size,
            batch_size=batch_size,
            steps_per_update=steps_per_update,
            updates_per_step=updates_per_step,
            n_step=n_step,
        )
        require_between(0, 1, priority_exponent=priority_exponent, importance_exponent=importance_exponent)
        if updates_per_step > 1 and steps_per_update > 1:
            raise UserError(
                f"updates_per_step is {updates_per_step}, but steps_per_update is {steps_per_update}; "
                "expected one of them to be 1"
            )
        total_steps = self.total_steps
        if n_step > min(buffer_size, total_steps):
            raise UserError(
                f"n_step is {n_step}; expected at most buffer_size {buffer_size} and "
                f"total_steps {total_steps}"
            )
        if steps_per_update > total_steps:
            raise UserError(
                f"steps_per_update is {steps_per_update}; expected at most total_steps {total_steps}"
            )
        if learning_starts < 0 or learning_starts + steps_per_update > total_steps:
            raise UserError(
                f"learning_starts is {learning_starts}; expected 0 to {total_steps - steps_per_update}, "
                f"so that learning begins before total_steps {total_steps}"
            )
        require_memory(f"buffer_size {buffer_size}", self._kept_bytes * buffer_size)
        require_memory(f"batch_size {batch_size}", 2 * self.observation_bytes * batch_size)
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.learning_starts = learning_starts
        self.steps_per_update = steps_per_update
        self.updates_per_step = updates_per_step
        self.n_step = n_step
        self.priority_exponent = priority_exponent
        self.importance_exponent = importance_exponent
        self._loader: ReplayLoader | None = None
        self._shards: ReplayShards | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def _kept_bytes(self) -> int:
        """Bytes that the observations of one transition take in replay."""
        if self.env_spec.is_frame_stack:
            return self.observation_bytes // self.env_spec.observation_shape[0]  # the newest frame
        return 2 * self.observation_bytes  # the observation and the next one

    @property
    def planned_batches(self) -> int:
        """Batches of the whole run, as ``steps_per_update`` and ``updates_per_step`` say."""
        trainer = cast(Any, self.trainer)
        vector_step = self.envs_in_process * (1 if trainer is None else trainer.world_size)
        steps = whole_steps(self.total_steps, vector_step) - self.learning_starts
        return max(1, steps * self.updates_per_step // self.steps_per_update)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps between evaluations: equal parts of the run, at most ``eval_every`` long."""
        updates = self.planned_batches
        steps = _steps_of(updates, self.steps_per_update, self.updates_per_step)
        epochs = -(-steps // self.eval_every)
        return -(-updates // epochs)

    def train_dataloader(self) -> ReplayLoader:
        """Build environments, collector, replay memory and loader."""
        trainer = cast(Any, self.trainer)
        agent = trainer.lightning_module
        if hasattr(agent, "process_rollout"):
            raise UserError(f"{type(agent).__name__} learns from rollouts; use RolloutDataModule")
        if self.priority_exponent is not None and not getattr(agent, "sets_priorities", False):
            raise UserError(
                f"priority_exponent is {self.priority_exponent:g}, but {type(agent).__name__} sets no "
                "priorities; expected null, or an agent that does, such as DQN"
            )
        # Whole vector steps, and no more of them than one update needs.
        envs = self.envs_in_process * trainer.world_size
        runner = self.build_runner(max(1, self.steps_per_update // envs))
        self._loader = ReplayLoader(
            runner,
            make_replay_buffer(
                self.env_spec,
                self.buffer_size,
                self.envs_in_process,
                self.batch_size,
                self.n_step,
                self.priority_exponent,
                self._present_importance,
            ),
            # A resumed run keeps its epochs' length, also when it is made longer.
            self.updates_per_epoch if self._restored is None else self._restored["updates_per_epoch"],
            self.learning_starts,
            self.steps_per_update,
            self.total_steps,
            self.end_pass,
            self.updates_per_step,
        )
        self._restore_replay(self._loader)
        return self._loader

    def _present_importance(self) -> float:
        return linear_schedule(self.env_steps, self.importance_exponent, 1.0, self.total_steps)

    def update_priorities(self, priority: Tensor) -> None:
        """Set the priorities ``(batch_size,)`` of the last batch's transitions."""
        assert self._loader is not None
        cast(PrioritizedReplay, self._loader.buffer).update_priorities(priority)

    # -- checkpoints -------------------------------------------------------------------------------------

    def fixed_settings(self) -> dict[str, Any]:
        """Return the settings that a resumed run must have as the run that it goes on with."""
        return {**super().fixed_settings(), "buffer_size": self.buffer_size, "n_step": self.n_step}

    def state_dict(self) -> dict[str, Any]:
        """Return the step count and the manifest of the transitions, written beside the checkpoint."""
        state = super().state_dict()
        directory = self._replay_directory()
        state["updates_per_epoch"] = self.updates_per_epoch if self._loader is None else len(self._loader)
        if self._loader is None or directory is None or self.is_for_evaluating:
            return state
        if not state["experience"][cast(Any, self.trainer).global_rank]:
            # The rows that are written now are not written again when the barrier ends these episodes.
            self._loader.end_episodes()
        if self._shards is None or self._shards.directory != directory:
            self._shards = ReplayShards(directory)
        manifest = self._shards.save(cast(RingStorage, self._loader.buffer.storage))
        state |= {"updates": self._loader.updates_state(), "replay": gather(manifest)}
        if isinstance(self._loader.buffer, PrioritizedReplay):
            state["priorities"] = gather(self._loader.buffer.priorities_state())
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step count; `train_dataloader` reads the transitions."""
        super().load_state_dict(state_dict)
        if cast(Any, self.trainer).state.fn == TrainerFn.FITTING:
            self._restored = state_dict

    def teardown(self, stage: str) -> None:
        """Close every environment and forget the transitions."""
        super().teardown(stage)
        self._loader = self._shards = None

    def _restore_replay(self, loader: ReplayLoader) -> None:
        state, self._restored = self._restored, None
        if state is None:
            return
        if "replay" not in state or self.fresh_experience:
            because = (
                "the experience is to be fresh"
                if self.fresh_experience
                else "it is for evaluating"
                if "is_for_evaluating" in state
                else "no ModelCheckpoint said where to write them"
            )
            rank_zero_warn(
                f"no transitions are taken from the checkpoint, as {because}; the run first collects "
                f"learning_starts {self.learning_starts} steps"
            )
            return
        trainer = cast(Any, self.trainer)
        shards = ReplayShards(find_replay(Path(trainer.ckpt_path), trainer.global_rank))
        shards.load(cast(RingStorage, loader.buffer.storage), state["replay"][trainer.global_rank])
        loader.load_updates_state(state["updates"])
        if isinstance(loader.buffer, PrioritizedReplay):
            saved = state.get("priorities")
            loader.buffer.load_priorities_state(None if saved is None else saved[trainer.global_rank])
        self._shards = shards

    def _replay_directory(self) -> Path | None:
        """Return the directory of the transitions, beside the checkpoints; ``None`` without checkpoints."""
        trainer = cast(Any, self.trainer)
        last = last_checkpoint(trainer) or trainer.checkpoint_callback
        if not isinstance(last, ModelCheckpoint) or last.dirpath is None:
            return None
        return Path(last.dirpath).resolve() / replay_name(trainer.global_rank)
