"""Data for offline Q-learning: transitions that were collected before, and nothing new."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from tensordict import TensorDict

from lit_gfs.datamodules.evaluated import EvaluatedDataModule
from lit_gfs.datamodules.resumable_pass import ResumablePass
from lit_gfs.datamodules.transition_sources import Transitions, load_transitions
from lit_gfs.errors import UserError, require_positive
from lit_gfs.utils.ranks import gather
from lit_gfs.utils.seeding import (
    derive_seed,
    generator_states,
    isolated_generators,
    seed_generators,
    set_generator_states,
)


class OfflineLoader(ResumablePass):
    """Draws batches of transitions: one per optimizer step.

    Args:
        transitions: What is drawn from.
        batch_size: Transitions in a batch.
        seed: Seed of the draws.
        batches_per_epoch: The length of a pass; an evaluation follows each.
        total_batches: Batches that the run lasts, in each process.
        on_first_batch: Called once, before the first batch after a start or a resume.
        on_last_batch: Called before the last batch of a pass is handed out.
    """

    def __init__(
        self,
        transitions: Transitions,
        batch_size: int,
        seed: int,
        batches_per_epoch: int,
        total_batches: int,
        on_first_batch: Callable[[], None] = lambda: None,
        on_last_batch: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(on_last_batch)
        self.transitions = transitions
        self.batches = 0
        """Batches so far."""
        self._batch_size = batch_size
        self._seed = seed
        self._batches_per_epoch = batches_per_epoch
        self._total_batches = total_batches
        self._on_first_batch = on_first_batch
        self._generator = torch.Generator()
        self._has_begun = False

    def __len__(self) -> int:
        return self._batches_per_epoch

    def __next__(self) -> TensorDict | None:
        if self._position == len(self):
            raise StopIteration
        if not self._has_begun:
            self._has_begun = True
            self._on_first_batch()
        batch = self._next_batch()
        self._advance()
        return batch

    def _next_batch(self) -> TensorDict | None:
        """Return a batch; ``None``, which Lightning skips, once the run has had all of them."""
        if self.batches >= self._total_batches:
            return None
        # A batch depends on its number alone, so there is no state of a generator to keep.
        self._generator.manual_seed(derive_seed("offline", self._seed, self.batches))
        self.batches += 1
        return self.transitions.sample(self._batch_size, self._generator)


class OfflineDataModule(EvaluatedDataModule):
    """Transitions of an earlier run or of a Minari data set, for offline Q-learning.

    No step is taken in the environment but in evaluations. A *step* of all counts and curves is a batch:
    ``total_steps``, ``eval_every``, and options of the agent such as ``target_sync_every``.

    Args:
        env_id: The environment of the transitions, in which the agent is evaluated.
        source: A checkpoint of a run with `ReplayDataModule`, such as ``last.ckpt``, or its directory; or
            ``minari:<id>``, a data set of Minari on this machine.
        batch_size: Transitions per batch; a batch is an optimizer step, unless gradients are accumulated.
        total_steps: Batches that the run lasts, summed over all processes.
        eval_every: Batches between evaluations, at most: evaluations are evenly spaced.
        options: The environment and its evaluations, see `EvaluatedDataModule`; ``seed`` also is that of the
            batches.

    Raises:
        UserError: If there are no such transitions, they belong to another environment, or a number is out
            of range.
    """

    # Of the class, because the base asks for `env_steps` if its first environment cannot be made.
    _loader: OfflineLoader | None = None

    def __init__(
        self,
        env_id: str,
        source: str,
        *,
        batch_size: int = 32,
        total_steps: int = 100_000,
        eval_every: int = 10_000,
        **options: Any,
    ) -> None:
        super().__init__(env_id, total_steps=total_steps, eval_every=eval_every, **options)
        require_positive(batch_size=batch_size)
        self.source = source
        self.batch_size = batch_size
        self._transitions: Transitions | None = None
        self._paused_generators: dict[str, Any] | None = None
        self._restored: dict[str, Any] = {}

    @property
    def env_steps(self) -> int:
        """Batches so far, over all processes."""
        if self._loader is None:
            return self._restored_steps
        return self._loader.batches * cast(Any, self.trainer).world_size

    @property
    def frame_skip(self) -> int:
        """Simulator frames per step: none, because a step is a batch."""
        return 0

    @property
    def planned_batches(self) -> int:
        """Batches of the whole run in each process."""
        trainer = cast(Any, self.trainer)
        return -(-self.total_steps // (1 if trainer is None else trainer.world_size))

    def train_dataloader(self) -> OfflineLoader:
        """Load the transitions, and show some of them to the agent's monitors."""
        trainer = cast(Any, self.trainer)
        agent = trainer.lightning_module
        if hasattr(agent, "process_rollout"):
            raise UserError(
                f"{type(agent).__name__} learns from rollouts; expected an agent that learns from replay, "
                "such as DQN"
            )
        if self._transitions is None:
            self._transitions = load_transitions(self.source, self.env_spec)
        epochs = -(-self.total_steps // self.eval_every)
        self._loader = OfflineLoader(
            self._transitions,
            self.batch_size,
            derive_seed("rank", self.seed, trainer.global_rank),
            -(-self.planned_batches // epochs),
            self.planned_batches,
            self._begin,
            self._end_pass,
        )
        self._loader.batches = -(-self._restored_steps // trainer.world_size)
        return self._loader

    def _begin(self) -> None:
        """Seed the global generators, or restore those of a checkpoint, before the first batch."""
        agent = cast(Any, self.trainer).lightning_module
        if self._restored:
            set_generator_states(self._restored, agent.device)
        else:
            seed_generators(derive_seed("generators", self.seed, cast(Any, self.trainer).global_rank))
            assert self._transitions is not None
            probe = self._transitions.sample(256, torch.Generator().manual_seed(self.seed))
            agent.show_observations(probe["observation"].unsqueeze(0))
            agent.take_statistics(self._transitions.observations())
        self._restored = {}

    def _end_pass(self) -> None:
        self.checkpoint_is_due = True

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Let an evaluation draw without effect on the later draws of training, or on a checkpoint."""
        with isolated_generators(cast(Any, self.trainer).lightning_module.device) as states:
            self._paused_generators = states
            try:
                yield
            finally:
                self._paused_generators = None

    def fixed_settings(self) -> dict[str, Any]:
        """Return the settings that must not change when a run is resumed."""
        return {**super().fixed_settings(), "batch_size": self.batch_size}

    def state_dict(self) -> dict[str, Any]:
        """Return the count of batches, and each process's generators."""
        state = super().state_dict()
        device = cast(Any, self.trainer).lightning_module.device
        return {**state, "generators": gather(self._paused_generators or generator_states(device))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count and, in fitting, the generators."""
        super().load_state_dict(state_dict)
        trainer = cast(Any, self.trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            self._restored = {} if self.fresh_experience else state_dict["generators"][trainer.global_rank]
            if self._loader is not None:
                self._loader.batches = -(-self._restored_steps // trainer.world_size)

    def teardown(self, stage: str) -> None:
        """Close every environment; the transitions stay for a further fit."""
        if self._loader is not None:
            self._restored_steps = self.env_steps
            self._loader = None
        super().teardown(stage)
