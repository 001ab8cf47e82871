"""Deep Q-learning (Mnih et al. 2015), with double Q-learning (van Hasselt et al. 2016) as an option.

The agent acts epsilon-greedily on Q(s, a) and stores its transitions in a replay memory. Each update draws a
batch of them and moves Q(s, a) towards r + gamma max_a' Q'(s', a'). Q' is the target network: a copy of the
weights that changes only now and then, so that the targets stand still in between. It may also be a running
average of the weights (Lillicrap et al. 2015, arXiv 1509.02971), whose targets move slowly.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDictBase
from torch import Tensor

from lit_gfs.agents.q_learning import QLearningAgent
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError, require_between
from lit_gfs.functional.losses import double_q_value, max_q_value, q_loss
from lit_gfs.functional.returns import learner_reward, td_target
from lit_gfs.networks import move_towards_
from lit_gfs.optim.factory import make_optimizer


class DQN(QLearningAgent):
    """Deep Q-learning from replayed transitions.

    Args:
        env_spec: The environment's spaces; the command line fills it in from the datamodule.
        target_sync_every: Environment steps between copies of the weights to the target network; without
            effect if ``target_tau`` is set.
        target_tau: Share by which the target network moves towards the weights after each optimizer step;
            ``null`` copies them instead.
        double: Whether the online network chooses the action that the target network values.
        options: Exploration and loss, see `QLearningAgent`; rewards and discount, see `Agent`; networks and
            optimizer, see `Learner`.

    Raises:
        UserError: If the environment's actions are continuous, or a number is out of range.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        *,
        target_sync_every: int = 1_000,
        target_tau: float | None = None,
        double: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(env_spec, **options)
        require_between(1, math.inf, target_sync_every=target_sync_every)
        if target_tau is not None and not 0 < target_tau <= 1:
            raise UserError(
                f"target_tau is {target_tau:g}; expected a number above 0 and at most 1, or null to copy"
            )
        self.target_network = copy.deepcopy(self.q_network).requires_grad_(False)
        self.target_sync_every = target_sync_every
        self.target_tau = target_tau
        self.uses_double_q = double  # `double` is a method of every module
        self._synced_at = 0

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """Return the loss of a batch of transitions, ``(batch,)``."""
        next_ = batch["next"]

        # 1. The values of all actions in the states of the batch, Q(s, .).
        q_values = self.q_network(batch["observation"])

        with torch.no_grad():
            # 2. The rewards as the learner sees them. A lost life may count as the end of the episode.
            reward, _, terminated = learner_reward(
                next_, self.reward_scale, self.clip_reward, self.end_of_life_is_terminal
            )
            # 3. The value of the next state: the target network's value of the best action. The largest of
            #    noisy values is too large on average. Double Q-learning reduces this: the online network
            #    chooses the action, and the target network, which errs elsewhere, values it.
            target_q = self.target_network(next_["observation"])
            if self.uses_double_q:
                next_value = double_q_value(self.q_network(next_["observation"]), target_q)
            else:
                next_value = max_q_value(target_q)
            # 4. The target r + gamma v(s'). A terminated episode has no next state; a truncated one does.
            target = td_target(reward, next_value, terminated, self.gamma)

        # 5. The actions that were taken move towards their targets.
        loss, td_error = q_loss(q_values, batch["action"], target, self.loss_function)

        self.record(
            {"loss/q": loss, "loss/td_error": td_error.abs(), "loss/q_value": q_values, "loss/target": target}
        )
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Copy the weights to the target network whenever its period is over, unless it is an average."""
        if self.target_tau is not None:
            return
        if self.env_steps // self.target_sync_every > self._synced_at // self.target_sync_every:
            self.sync_target()
            self.announce_objective_shift("target_sync")

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Take an optimizer step; move the target network if it is an average."""
        super().optimizer_step(*arguments, **options)
        if self.target_tau is not None:
            self.average_target(self.target_tau)

    def average_target(self, tau: float) -> None:
        """Move the target network towards the weights: target <- (1 - tau) target + tau weights.

        No shift of the objective is announced: no single step changes the targets by much.
        """
        move_towards_(self.target_network, self.q_network, tau)

    @torch.no_grad()
    def sync_target(self) -> None:
        """Copy the weights to the target network."""
        self.target_network.load_state_dict(self.q_network.state_dict())
        self._synced_at = self.env_steps

    def on_weights_initialized(self) -> None:
        """Start with equal networks after a callback has changed the weights."""
        self.sync_target()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over the online network and, where asked for, its schedule."""
        optimizer = make_optimizer(self.build_optimizer, self.q_network.parameters())
        return self.annealed(optimizer, "step") if self.anneal_learning_rate else optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep when the target network was last copied."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["target_synced_at"] = self._synced_at

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the same target period."""
        super().on_load_checkpoint(checkpoint)
        self._synced_at = checkpoint.get("target_synced_at", 0)
