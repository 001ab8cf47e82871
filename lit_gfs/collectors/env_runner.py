"""Gathering experience: the one place where environments are stepped for learning, and steps are counted."""

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
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.errors import EnvironmentFault
from lit_gfs.utils.seeding import (
    derive_seed,
    generator_states,
    isolated_generators,
    seed_generators,
    set_generator_states,
)

_MOST_CUT = 1 / 20
"""The share of all episodes that barriers may cut without a word."""


class CollectingAgent(Protocol):
    """What a datamodule asks of the agent that it feeds.

    An agent whose attribute ``needs_only_final_observations`` is true gets, with images, a
    `FinalObservations` for ``("next", "observation")``: a rollout of half the size.
    """

    device: torch.device

    def collection_policy(self) -> nn.Module:
        """Return the policy that acts: reads ``observation``, writes ``action``."""

    def on_collection_start(self) -> None:
        """Prepare for the next piece of experience."""

    def on_collection_end(self, experience: TensorDictBase) -> None:
        """See a piece of experience ``(num_envs, T)`` before it is learned from."""


class EnvRunner:
    """A TorchRL collector whose every draw follows from (run seed, rank, environment steps, updates).

    A checkpoint holds where the environments and all generators are, and a resumed run goes on there: it
    repeats the uninterrupted one, and no episode is cut. Where nothing brings the environments back
    (`is_restorable` is false), a checkpoint is a barrier instead: before the next step is taken, all
    environments are reset and all generators seeded from the run's seed and how far it is, in the run that
    goes on as in the run that resumes. Their open episodes count as truncated.

    Args:
        env: The batched environment to step.
        agent: The agent whose policy acts, and whose weights it shares.
        steps_per_env: Vector steps in a piece of experience.
        seed: The seed of the run.
        rank: This process among ``world_size`` ones, each with environments of its own.
        world_size: How many processes collect.
        precision: Makes the context that the policy runs in, so that acting and learning agree in precision.
        before_rollout: Called before a piece is collected; what it raises leaves everything as it is.
        runs_ahead: Whether the step after a piece begins with it, see `DirectCollector`.
        env_steps: Environment steps taken before, by all processes.

    Raises:
        EnvironmentFault: If an environment fails when it is first reset.
    """

    def __init__(
        self,
        env: EnvBase,
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
        """Environment steps that are taken at once, by all processes."""
        self.steps_per_env = steps_per_env
        self._seed = seed
        self.rank = rank
        self.precision = precision
        self._before_rollout = before_rollout
        self._barrier_due = True
        self._restored: dict[str, Any] | None = None
        self._left_alone: dict[str, Any] | None = None
        self._ended = self._cut = 0
        self._has_warned = False
        if isinstance(env, BatchedEnv):
            env.keep_history()
        shows_images = len(env.observation_spec["observation"].shape) == 4
        with self._dating_faults():
            self._collector = DirectCollector(
                env,
                agent.collection_policy(),
                frames_per_batch=env.batch_size.numel() * steps_per_env,
                total_frames=-1,
                policy_device=agent.device,
                env_device="cpu",
                storing_device="cpu",
                track_traj_ids=False,
                trust_policy=True,
                auto_register_policy_transforms=False,
                # Without a copy: the next piece is written over this one.
                return_same_td=True,
                only_final_observations=shows_images
                and getattr(agent, "needs_only_final_observations", False),
                runs_ahead=runs_ahead,
            )
        self._pieces = iter(self._collector)

    @property
    def is_restorable(self) -> bool:
        """Whether a checkpoint holds where the environments are, so that it cuts no episode."""
        return self._collector.is_direct and cast(BatchedEnv, self.env).is_restorable

    def request_barrier(self) -> None:
        """Have everything reset and seeded afresh before the next step."""
        self._barrier_due = True
        self._restored = None

    def state_dict(self) -> dict[str, Any]:
        """Return where environments and generators are.

        Where nothing holds that, the result is empty and a barrier is due.
        """
        if self._restored is not None:
            return self._restored
        snapshot = None if self._barrier_due else self._collector.snapshot()
        if snapshot is None:
            self.request_barrier()
            return {}
        generators = self._left_alone or generator_states(self.agent.device)
        return {"environments": snapshot, "generators": generators}

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Let somebody else draw: neither what is drawn next nor a checkpoint that is written now changes."""
        with isolated_generators(self.agent.device) as states:
            self._left_alone = states
            try:
                yield
            finally:
                self._left_alone = None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, with the next step, where `state_dict` was called."""
        self._barrier_due = not state
        self._restored = state or None

    def pass_barrier(self, updates: int) -> bool:
        """Before the next step, go where a checkpoint says, or reset and seed what is due to be.

        Args:
            updates: Batches learned from so far, or from the present rollout: what tells checkpoints at the
                same count of environment steps apart.

        Returns:
            Whether there was a barrier: episodes were cut.
        """
        if self._restored is not None:
            self._go_back(self._restored)
        if not self._barrier_due:
            return False
        self._barrier_due = False
        self._count_cut_episodes()
        position = (self._seed, self.rank, self.env_steps, updates)
        seed_generators(derive_seed("generators", *position))
        self.env.set_seed(derive_seed("environments", *position))
        with self._dating_faults():
            self._collector.reset()
        return True

    def _go_back(self, state: dict[str, Any]) -> None:
        with self._dating_faults():
            repeated = self._collector.restore(state["environments"])
        set_generator_states(state["generators"], self.agent.device)
        self._restored = None
        if not repeated:
            rank_zero_warn(
                f"{_name(self.env)} does not repeat itself from the seeds of its resets: its open episodes "
                "are cut, and the run does not go on as the one before would have"
            )
            self._barrier_due = True

    def _count_cut_episodes(self) -> None:
        """Count the open episodes that a barrier cuts; tell of it once where they are many."""
        if isinstance(self.env, BatchedEnv):
            self._cut += self.env.open_episodes
        if self._cut > _MOST_CUT * (self._cut + self._ended) and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"checkpoints have cut {self._cut} of {self._cut + self._ended} episodes of "
                f"{_name(self.env)}; a larger data.checkpoint_every leaves them more room"
            )

    @contextmanager
    def _dating_faults(self) -> Iterator[None]:
        try:
            yield
        except EnvironmentFault as fault:
            fault.env_steps = self.env_steps
            raise

    def collect(self, steps: int | None = None) -> TensorDictBase:
        """Step the environments once more.

        Args:
            steps: Vector steps, at most ``steps_per_env``; by default as many.

        Returns:
            A piece of experience ``(num_envs, steps)``, on the CPU; the next call writes over it.

        Raises:
            EnvironmentFault: If an environment fails. Nothing was counted: a checkpoint that is written then
                is one from before the piece.
        """
        self._before_rollout()
        self.agent.on_collection_start()
        self._collector.steps = self.steps_per_env if steps is None else steps
        try:
            with self._dating_faults(), self.precision():
                piece = next(self._pieces)
        except BaseException:
            # Where the environments were before the piece, nobody knows any more.
            self.request_barrier()
            raise
        self.env_steps += piece.shape[-1] * self.vector_step
        if not self.is_restorable:
            self._ended += int(piece["next", "done"].sum())
        self.agent.on_collection_end(piece)
        return piece

    def close(self) -> None:
        """Shut the collector and its environments down."""
        self._collector.shutdown()


def _name(env: EnvBase) -> str:
    return getattr(env, "env_id", type(env).__name__)
