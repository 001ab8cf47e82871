"""Gathering experience: the one place where environments are stepped for learning, and steps are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase

from lit_gfs.datamodules.collector import DirectCollector
from lit_gfs.errors import EnvironmentFault
from lit_gfs.seeding import derive_seed, seed_generators


class CollectingAgent(Protocol):
    """What a datamodule asks of the agent that it feeds.

    An agent whose attribute ``needs_only_final_observations`` is true gets, with images, a
    `lit_gfs.bootstrap.FinalObservations` for ``("next", "observation")``: a rollout of half the size.
    """

    device: object

    def collection_policy(self) -> nn.Module:
        """Return the policy that acts: reads ``observation``, writes ``action``."""

    def on_collection_start(self) -> None:
        """Prepare for the next piece of experience."""

    def on_collection_end(self, experience: TensorDictBase) -> None:
        """See a piece of experience ``(num_envs, T)`` before it is learned from."""


class Experience:
    """A TorchRL collector whose every draw follows from (run seed, rank, environment steps, updates).

    A checkpoint is a barrier: before the next step is taken, all environments are reset and all generators
    seeded from the run's seed and how far it is, in the run that goes on as in the run that resumes. Their
    open episodes count as truncated. So a resumed run repeats the uninterrupted one without saving the state
    of a simulator or of a generator.

    Args:
        env: The batched environment to step.
        agent: The agent whose policy acts, and whose weights it shares.
        steps_per_env: Vector steps in a piece of experience.
        seed: The seed of the run.
        rank: This process among ``world_size`` ones, each with environments of its own.
        world_size: How many processes collect.
        precision: Makes the context that the policy runs in, so that acting and learning agree in precision.
        before_piece: Called before a piece is collected; what it raises leaves everything as it is.
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
        before_piece: Callable[[], None] = lambda: None,
        runs_ahead: bool = False,
        env_steps: int = 0,
    ) -> None:
        self.env = env
        self.agent = agent
        self.env_steps = env_steps
        self.steps_per_call = env.batch_size.numel() * steps_per_env * world_size
        self._seed = seed
        self.rank = rank
        self.precision = precision
        self._before_piece = before_piece
        self._barrier_due = True
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

    def request_barrier(self) -> None:
        """Have everything reset and seeded afresh before the next step: a checkpoint is being written."""
        self._barrier_due = True

    def pass_barrier(self, updates: int) -> bool:
        """Reset and seed what is due to be.

        Args:
            updates: Batches learned from so far, or from the present rollout: what tells checkpoints at the
                same count of environment steps apart.

        Returns:
            Whether there was a barrier: episodes were cut.
        """
        if not self._barrier_due:
            return False
        self._barrier_due = False
        position = (self._seed, self.rank, self.env_steps, updates)
        seed_generators(derive_seed("generators", *position))
        self.env.set_seed(derive_seed("environments", *position))
        with self._dating_faults():
            self._collector.reset()
        return True

    @contextmanager
    def _dating_faults(self) -> Iterator[None]:
        try:
            yield
        except EnvironmentFault as fault:
            fault.env_steps = self.env_steps
            raise

    def collect(self) -> TensorDictBase:
        """Step the environments once more.

        Returns:
            A piece of experience ``(num_envs, steps_per_env)``, on the CPU; the next call writes over it.

        Raises:
            EnvironmentFault: If an environment fails. Nothing was counted: a checkpoint that is written then
                is one from before the piece.
        """
        self._before_piece()
        self.agent.on_collection_start()
        with self._dating_faults(), self.precision():
            piece = next(self._pieces)
        self.env_steps += self.steps_per_call
        self.agent.on_collection_end(piece)
        return piece

    def close(self) -> None:
        """Shut the collector and its environments down."""
        self._collector.shutdown()
