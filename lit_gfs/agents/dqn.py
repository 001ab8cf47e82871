"""Deep Q-learning (Mnih et al. 2015), with the parts of Rainbow (Hessel et al. 2018) as options.

The agent acts epsilon-greedily on Q(s, a) and stores its transitions in a replay memory. Each update draws a
batch of them and moves Q(s, a) towards r + gamma max_a' Q'(s', a'). Q' is the target network: a copy of the
weights that changes only now and then, so that the targets stand still in between. It may also be a running
average of the weights (Lillicrap et al. 2015, arXiv 1509.02971), whose targets move slowly.

Rainbow's parts lie where they act: `double` here; `loss`, `dueling` and `noisy` in `QLearningAgent`; returns
of several steps and prioritized replay in `lit_gfs.datamodules.ReplayDataModule`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDictBase
from torch import Tensor

from lit_gfs.agents.q_learning import QLearningAgent
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError, require_between
from lit_gfs.functional.losses import conservative_penalty, of_action, weighted_mean
from lit_gfs.functional.returns import n_step_return, td_target
from lit_gfs.networks import move_towards_
from lit_gfs.optim.factory import make_optimizer

PRIORITY = "replay/priority"
"""The tag of the priorities of a batch."""


class DQN(QLearningAgent):
    """Deep Q-learning from replayed transitions.

    Args:
        env_spec: The environment's spaces; the command line fills it in from the datamodule.
        target_sync_every: Environment steps between copies of the weights to the target network; without
            effect if ``target_tau`` is set.
        target_tau: Share by which the target network moves towards the weights after each optimizer step;
            ``null`` copies them instead.
        double: Whether the online network chooses the action that the target network values (van Hasselt et
            al. 2016).
        conservatism: Weight of the conservative penalty, for offline learning; 0 switches it off.
        options: Exploration and loss, see `QLearningAgent`; rewards and discount, see `Agent`; networks and
            optimizer, see `Learner`.

    Raises:
        UserError: If the environment's actions are continuous, or a number is out of range.
    """

    sets_priorities: ClassVar[bool] = True
    """Whether it tells a prioritized memory how much there was to learn from a batch."""

    def __init__(
        self,
        env_spec: EnvSpec,
        *,
        target_sync_every: int = 1_000,
        target_tau: float | None = None,
        double: bool = False,
        conservatism: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(env_spec, **options)
        require_between(1, math.inf, target_sync_every=target_sync_every)
        require_between(0, math.inf, conservatism=conservatism)
        if target_tau is not None and not 0 < target_tau <= 1:
            raise UserError(
                f"target_tau is {target_tau:g}; expected a number above 0 and at most 1, or null to copy"
            )
        self.target_network = copy.deepcopy(self.q_network).requires_grad_(False)
        self.target_sync_every = target_sync_every
        self.target_tau = target_tau
        self.uses_double_q = double  # `double` is a method of every module
        self.conservatism = conservatism
        self._synced_at = 0

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """Return the loss of a batch of transitions, ``(batch,)``."""
        next_ = batch["next"]

        # 1. What the network says of all actions in the states of the batch: Q(s, .), or its distribution.
        outputs = self.q_network(batch["observation"])
        q_values = self.values.mean(outputs.detach())

        with torch.no_grad():
            # 2. The rewards up to the next state as the learner sees them: of one step, or the discounted sum
            #    of several. A lost life may count as the end of the episode.
            reward, terminated, discount = n_step_return(
                next_, self.gamma, self.reward_scale, self.clip_reward, self.end_of_life_is_terminal
            )
            # 3. The best action in the next state, as the target network states its value. The largest of
            #    noisy values is too large on average. Double Q-learning reduces this: the online network
            #    chooses the action, and the target network, which errs elsewhere, values it.
            next_outputs = self.target_network(next_["observation"])
            chooser = self.q_network(next_["observation"]) if self.uses_double_q else next_outputs
            next_outputs = of_action(next_outputs, self.values.mean(chooser).argmax(-1))
            # 4. The target r + gamma v(s'), as a number and as the network is to state it. A terminated
            #    episode has no next state; a truncated one does.
            target = td_target(reward, self.values.mean(next_outputs), terminated, discount)
            goal = self.values.bootstrapped(reward, next_outputs, terminated, discount)

        # 5. The actions that were taken move towards their targets. Where transitions were not drawn with
        #    equal probabilities, weights make up for it.
        losses = self.values.losses(of_action(outputs, batch["action"]), goal)
        loss = weighted_mean(losses, batch.get("weight", None))

        td_error = target - of_action(q_values, batch["action"])
        self.record(
            {
                "loss/q": loss,
                "loss/td_error": td_error.abs(),
                "loss/q_value": q_values,
                "loss/target": target,
                **self.values.metrics(target),
            }
        )
        # 6. A prioritized memory draws transitions again by how much there was to learn from them.
        if "weight" in batch:
            self.record({PRIORITY: self.values.surprise(losses, td_error)})

        # 7. Offline, no new experience corrects the value of an action that the data lack. Conservative
        #    Q-learning (Kumar et al. 2020) pushes such values down, and those of the data's actions up.
        if self.conservatism:
            penalty = conservative_penalty(self.values.mean(outputs), batch["action"])
            self.record({"loss/conservative": penalty})
            loss = loss + self.conservatism * penalty
        return loss

    def record(self, values: Mapping[str, Tensor]) -> None:
        """Record, and hand the priorities of the batch over to the replay memory.

        A step that a CUDA graph replays arrives here too, with its own values.
        """
        super().record(values)
        if PRIORITY in values and self._diverted is None and not self.is_probed:
            cast(Any, self.source).update_priorities(values[PRIORITY].detach())

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
        return self.annealed(optimizer, "step")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep when the target network was last copied."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["target_synced_at"] = self._synced_at

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the same target period."""
        super().on_load_checkpoint(checkpoint)
        self._synced_at = checkpoint.get("target_synced_at", 0)
