"""Off-policy data: transitions are stored once and sampled many times."""

from __future__ import annotations

from typing import Any, cast

from tensordict import TensorDictBase
from torchrl.data import ReplayBuffer

from lit_gfs.datamodules.base import EnvDataModule, require_positive
from lit_gfs.datamodules.experience import Experience
from lit_gfs.datamodules.frame_storage import FrameStackStorage, frame_replay_buffer
from lit_gfs.datamodules.rollout_writer import uniform_replay_buffer
from lit_gfs.datamodules.transition_storage import TransitionStorage
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError


def make_replay_buffer(spec: EnvSpec, capacity: int, num_envs: int, batch_size: int) -> ReplayBuffer:
    """Make the replay memory that suits the observations.

    Stacked frames are stored once per frame and rebuilt when sampled; vectors are stored as they come.

    Args:
        spec: The environment's spaces.
        capacity: Transitions that are kept.
        num_envs: Environments that feed it.
        batch_size: Transitions in a sample.
    """
    if spec.is_frame_stack:
        return frame_replay_buffer(capacity, num_envs, batch_size)
    return uniform_replay_buffer(TransitionStorage(capacity), batch_size)


class ReplayLoader:
    """Collects what the replay ratio asks for, then samples: one batch per optimizer step.

    Everything is counted in environment steps: after the first ``learning_starts`` of them, one update falls
    due every ``steps_per_update``.

    Args:
        experience: Where transitions come from.
        buffer: Where they are kept.
        updates_per_epoch: The length of a pass; an evaluation follows each.
        learning_starts: Environment steps before the first update.
        steps_per_update: Environment steps per update.
    """

    def __init__(
        self,
        experience: Experience,
        buffer: ReplayBuffer,
        updates_per_epoch: int,
        learning_starts: int,
        steps_per_update: int,
    ) -> None:
        self._experience = experience
        self.buffer = buffer
        self._updates_per_epoch = updates_per_epoch
        self._steps_per_update = steps_per_update
        # A resumed run begins with an empty buffer, and fills it as far as a new run does.
        self._first_update_at = experience.env_steps + learning_starts
        self._updates = 0
        self._position = 0

    def __len__(self) -> int:
        return self._updates_per_epoch

    def __iter__(self) -> ReplayLoader:
        if self._position == len(self):
            self._position = 0
        return self

    def __next__(self) -> TensorDictBase:
        if self._position == len(self):
            raise StopIteration
        if self._experience.pass_barrier() and isinstance(self.buffer.storage, FrameStackStorage):
            self.buffer.storage.end_episodes()
        while self._updates >= self._updates_due:
            self.buffer.extend(self._experience.collect())
        self._updates += 1
        self._position += 1
        return self.buffer.sample()

    @property
    def _updates_due(self) -> int:
        return (self._experience.env_steps - self._first_update_at) // self._steps_per_update

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the pass; the transitions themselves are not in the checkpoint."""
        return {"position": self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the same pass."""
        self._position = state_dict["position"]


class ReplayDataModule(EnvDataModule):
    """Replayed transitions for off-policy agents.

    A Lightning epoch is the stretch between two evaluations. Replayed transitions are not part of the
    checkpoint: a resumed run first collects ``learning_starts`` steps with its restored policy.

    Args:
        env_id: ``CartPole-v1``, ``ALE/Pong-v5``, ``dm_control/walker-walk-v0`` ...
        num_envs: Environments stepped together, in each process.
        total_steps: Environment steps (agent decisions, summed over all environments) that the run lasts.
        eval_every: Most environment steps between evaluations, which are evenly spaced.
        eval_episodes: Full episodes in an evaluation.
        env_options: Options of the environment's suite, such as ``repeat_action_probability`` on Atari.
        seed: Seed of the environments; ``null`` takes that of ``seed_everything``.
        video: Whether ``test`` writes ``episode.mp4``, a video of one episode, beside the checkpoint.
        buffer_size: Transitions kept, in each process.
        batch_size: Transitions per batch; a batch is an optimizer step, unless gradients are accumulated.
        learning_starts: Environment steps collected before the first optimizer step.
        steps_per_update: Environment steps per batch.

    Raises:
        UserError: If a count is not positive, or learning would start after the run's end.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        total_steps: int = 1_000_000,
        eval_every: int = 50_000,
        eval_episodes: int = 10,
        env_options: dict[str, Any] | None = None,
        seed: int | None = None,
        video: bool = False,
        buffer_size: int = 100_000,
        batch_size: int = 32,
        learning_starts: int = 1_000,
        steps_per_update: int = 4,
    ) -> None:
        require_positive(
            total_steps=total_steps,
            buffer_size=buffer_size,
            batch_size=batch_size,
            steps_per_update=steps_per_update,
        )
        if learning_starts < 0 or learning_starts + steps_per_update > total_steps:
            raise UserError(
                f"learning_starts is {learning_starts}; expected 0 to {total_steps - steps_per_update}, "
                f"so that learning begins before total_steps {total_steps}"
            )
        super().__init__(env_id, num_envs, total_steps, eval_every, eval_episodes, env_options, seed, video)
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.learning_starts = learning_starts
        self.steps_per_update = steps_per_update

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps between evaluations: the run's, in equal parts no longer than asked for."""
        updates = (self.total_steps - self.learning_starts) // self.steps_per_update
        epochs = -(-updates * self.steps_per_update // self.eval_every)
        return -(-updates // epochs)

    def train_dataloader(self) -> ReplayLoader:
        """Build environments, collector, replay memory and loader."""
        trainer = cast(Any, self.trainer)
        agent = trainer.lightning_module
        if hasattr(agent, "process_rollout"):
            raise UserError(f"{type(agent).__name__} learns from rollouts; use RolloutDataModule")
        # Whole vector steps, and no more of them than one update asks for.
        experience = self.build_experience(
            max(1, self.steps_per_update // (self.num_envs * trainer.world_size))
        )
        return ReplayLoader(
            experience,
            make_replay_buffer(self.env_spec, self.buffer_size, self.num_envs, self.batch_size),
            self.updates_per_epoch,
            self.learning_starts,
            self.steps_per_update,
        )
