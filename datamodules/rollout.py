"""Data for on-policy agents: rollouts, learned from a few times and thrown away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from lit_gfs.collectors.env_runner import CollectingAgent, EnvRunner
from lit_gfs.datamodules.base import EnvDataModule
from lit_gfs.datamodules.resumable_pass import ResumablePass
from lit_gfs.errors import UserError, require_positive
from lit_gfs.utils.memory import require_memory
from lit_gfs.utils.ranks import gather
from lit_gfs.utils.transfers import send


class OnPolicyAgent(CollectingAgent, Protocol):
    """An agent that learns from rollouts."""

    rollout_exhausted: bool
    """Whether to skip the rest of the current rollout's minibatches."""

    def process_rollout(self, rollout: TensorDictBase) -> TensorDict:
        """Turn a rollout ``(num_envs, T)`` into transitions ``(num_envs * T,)``, returns computed once."""


class RolloutLoader(ResumablePass):
    """One rollout per pass: ``epochs`` times over it in ``minibatches`` shuffled parts.

    Every batch is one optimizer step. Once the agent declares the rollout exhausted, the rest of its batches
    are ``None``, and Lightning skips these steps. A last, shorter rollout has fewer minibatches, and ``None``
    for the others.

    Args:
        runner: Collects rollouts.
        agent: Computes returns and advantages.
        epochs: Passes over a rollout.
        minibatches: Parts per pass.
        total_steps: Environment steps that the run lasts. The last rollout ends with the vector step that
            reaches them.
        on_last_batch: Called before the last batch of a pass is handed out.
        restores_rollout: Whether a run that is resumed in the middle of a rollout goes on with it; otherwise
            the rest of its batches is ``None``.
    """

    def __init__(
        self,
        runner: EnvRunner,
        agent: OnPolicyAgent,
        epochs: int,
        minibatches: int,
        total_steps: int,
        on_last_batch: Callable[[], None] = lambda: None,
        restores_rollout: bool = True,
    ) -> None:
        super().__init__(on_last_batch)
        self._runner = runner
        self._agent = agent
        self._epochs = epochs
        self._minibatches = minibatches
        self._total_steps = total_steps
        self._restores_rollout = restores_rollout
        self._transitions: TensorDict | None = None
        self._order: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self._epochs * self._minibatches

    def __next__(self) -> TensorDict | None:
        if self._position == len(self):
            raise StopIteration
        self._runner.pass_barrier(self._position)
        if self._position == 0:
            self._runner.begin_due_task()
            rollout = self._runner.collect(self._rollout_steps)
            # The values of final observations need the same precision as all others.
            with self._runner.precision():
                self._transitions = self._agent.process_rollout(rollout)
        part = self._position % self._minibatches
        if part == 0 and self._transitions is not None:
            # The same order on every device, sent once for all minibatches of the pass.
            order = send(torch.randperm(len(self._transitions)), self._agent.device)
            self._order = order.tensor_split(self._parts(len(order)))
        self._advance()
        if self._transitions is None or self._agent.rollout_exhausted or part >= len(self._order):
            return None
        return self._transitions[self._order[part]]

    @property
    def _rollout_steps(self) -> int:
        """Vector steps of the next rollout."""
        runner = self._runner
        left = -(-(self._total_steps - runner.env_steps) // runner.vector_step)
        return min(left, runner.steps_per_env) if left > 0 else runner.steps_per_env

    def _parts(self, transitions: int) -> int:
        """Return how many minibatches a rollout has: those of a short one are as large as others."""
        runner = self._runner
        whole = runner.steps_per_env * runner.env.batch_size.numel()
        return max(1, round(self._minibatches * transitions / whole))

    def state_dict(self) -> dict[str, Any]:
        """Return the position and, in the middle of a rollout, each process's rollout and its order."""
        state = super().state_dict()
        if 0 < self._position < len(self) and self._transitions is not None:
            rollout = {
                "transitions": {str(key): value.cpu() for key, value in self._transitions.items()},
                "order": [part.cpu() for part in self._order],
            }
            state["rollouts"] = gather(rollout)
            state["exhausted"] = self._agent.rollout_exhausted
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the next minibatch of the same rollout."""
        super().load_state_dict(state_dict)
        if "rollouts" in state_dict and self._restores_rollout:
            rollout = state_dict["rollouts"][self._runner.rank]
            columns = rollout["transitions"]
            device = self._agent.device
            self._transitions = TensorDict(columns, [len(next(iter(columns.values())))]).to(device)
            self._order = tuple(part.to(device) for part in rollout["order"])
            self._agent.rollout_exhausted = state_dict["exhausted"]


class RolloutDataModule(EnvDataModule):
    """Rollouts for on-policy agents: one rollout per Lightning epoch, ``epochs x minibatches`` steps on it.

    The last rollout may be shorter, to end the run at ``total_steps``; it then has fewer minibatches.

    Args:
        env_id: ``CartPole-v1``, ``ALE/Pong-v5``, ``dm_control/walker-walk-v0`` ...
        num_envs: Environments stepped together, in each process, or in each remote collector.
        rollout_steps: Vector steps in a rollout: it holds ``num_envs * rollout_steps`` transitions, of each
            remote collector if there are some.
        epochs: Passes over a rollout.
        minibatches: Optimizer steps per pass.
        options: Environments, evaluations and checkpoints, see `EnvDataModule`.

    Raises:
        UserError: If a count is not positive, or there are more minibatches than transitions.
    """

    def __init__(
        self,
        env_id: str,
        *,
        num_envs: int = 8,
        rollout_steps: int = 128,
        epochs: int = 4,
        minibatches: int = 4,
        **options: Any,
    ) -> None:
        require_positive(
            num_envs=num_envs, rollout_steps=rollout_steps, epochs=epochs, minibatches=minibatches
        )
        if minibatches > num_envs * rollout_steps:
            raise UserError(
                f"minibatches is {minibatches}, more than the {num_envs * rollout_steps} transitions of a "
                f"rollout (num_envs {num_envs} x rollout_steps {rollout_steps}); expected at most that many"
            )
        super().__init__(env_id, num_envs=num_envs, **options)
        require_memory(
            f"a rollout of num_envs {num_envs} x rollout_steps {rollout_steps}",
            self.observation_bytes * self.envs_in_process * rollout_steps,
        )
        self.rollout_steps = rollout_steps
        self.epochs = epochs
        self.minibatches = minibatches

    @property
    def planned_batches(self) -> int:
        """Batches of the whole run, ``epochs x minibatches`` for each rollout."""
        trainer = cast(Any, self.trainer)
        world_size = 1 if trainer is None else trainer.world_size
        rollouts = -(-self.total_steps // (world_size * self.envs_in_process * self.rollout_steps))
        return rollouts * self.epochs * self.minibatches

    def train_dataloader(self) -> RolloutLoader:
        """Build environments, collector and loader."""
        trainer = cast(Any, self.trainer)
        agent = trainer.lightning_module
        if not hasattr(agent, "process_rollout"):
            raise UserError(f"{type(agent).__name__} learns from replay; use ReplayDataModule")
        runner = self.build_runner(self.rollout_steps)
        return RolloutLoader(
            runner,
            agent,
            self.epochs,
            self.minibatches,
            self.total_steps,
            self._end_of_rollout,
            restores_rollout=not self.fresh_experience,
        )

    def _end_of_rollout(self) -> None:
        # Lightning counts epochs (rollouts) between validations, users count environment steps. So the end of
        # each rollout sets the Trainer's period: 1 divides the number of this epoch, a larger one does not.
        trainer = cast(Any, self.trainer)
        due = self.env_steps // self.eval_every > self._evaluated_at // self.eval_every
        due = due or self.env_steps >= self.total_steps
        if due:
            self._evaluated_at = self.env_steps
        trainer.check_val_every_n_epoch = 1 if due else trainer.current_epoch + 2
        self.end_pass(evaluates=due)
