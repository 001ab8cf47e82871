"""Parallelised Q-network (Gallici et al. 2024, arXiv 2407.04811): Q-learning from fresh rollouts.

There is neither a replay memory nor a target network. Many environments that are stepped together take the
place of replay; normalization inside of the network keeps the values stable in the place of the target
network. The network that collects a rollout also computes its targets, the lambda-returns on the values of
the best actions. A few passes of minibatches then move Q(s, a) towards these targets.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.optim import RAdam

from lit_gfs.agents.q_learning import QLearningAgent
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import require_between
from lit_gfs.functional.exploration import epsilon_greedy
from lit_gfs.functional.losses import max_q_value, of_action
from lit_gfs.functional.returns import lambda_return, learner_reward, next_values
from lit_gfs.functional.value_distributions import ValueLoss
from lit_gfs.networks import PlainTrunk, TrunkFactory
from lit_gfs.optim.factory import OptimizerFactory, make_optimizer
from lit_gfs.utils.transfers import send


class PQN(QLearningAgent):
    """Q-learning without replay and without a target network.

    Args:
        env_spec: The environment's spaces; the command line fills it in from the datamodule.
        trunk: Builds the trunk; it should normalize, as the default does.
        optimizer: Builds the optimizer. The default has PyTorch's own settings (rate 1e-3), not those of the
            shipped configurations.
        lambda_: Weight of longer returns, from 0 (one step) to 1 (Monte Carlo).
        loss: As in `QLearningAgent`. The lambda-return is a number, and so ``c51`` splits it between two
            atoms.
        epsilon_end: Probability of a random action once decayed, which the paper does over a tenth of the
            run. Epsilon moves from rollout to rollout.
        options: Exploration, see `QLearningAgent`; rewards and discount, see `Agent`; networks, see
            `Learner`.

    Raises:
        UserError: If the environment's actions are continuous, or a number is out of range.
    """

    needs_only_final_observations: ClassVar[bool] = True

    def __init__(
        self,
        env_spec: EnvSpec,
        *,
        trunk: TrunkFactory = lambda in_features: PlainTrunk(in_features, norm="layer"),
        optimizer: OptimizerFactory = RAdam,
        lambda_: float = 0.65,
        loss: ValueLoss = "mse",
        epsilon_end: float = 0.001,
        **options: Any,
    ) -> None:
        super().__init__(
            env_spec, trunk=trunk, optimizer=optimizer, loss=loss, epsilon_end=epsilon_end, **options
        )
        require_between(0, 1, lambda_=lambda_)
        self.lambda_ = lambda_
        self.rollout_exhausted = False  # every minibatch is learned from

    def collection_policy(self) -> Policy:
        """Act epsilon-greedily; keep the state's value, which the target of the step before needs."""
        return Policy(self._explore, ["action", "value"], lambda: {"epsilon": self.epsilon})

    def _explore(self, observation: Tensor, epsilon: float | Tensor) -> dict[str, Tensor]:
        q_values = self.forward(observation)
        return {"action": epsilon_greedy(q_values, epsilon), "value": max_q_value(q_values)}

    def on_collection_start(self) -> None:
        """Say that the targets are about to change."""
        self.announce_objective_shift("rollout")

    @torch.no_grad()
    def process_rollout(self, rollout: TensorDictBase) -> TensorDict:
        """Compute targets once for a rollout ``(num_envs, T)``.

        Args:
            rollout: What `collection_policy` and the environments gave. ``("next", "observation")`` may be a
                `lit_gfs.collectors.final_observations.FinalObservations`.

        Returns:
            The transitions that minibatches are drawn from, ``(num_envs * T,)``, on the agent's device.
        """
        next_, value = rollout["next"], send(rollout["value"], self.device)

        # 1. The rewards as the learner sees them. A lost life may count as the end of the episode. They stay
        #    on the CPU until the ends of episodes have told which states are to be computed.
        reward, done, terminated = learner_reward(
            next_, self.reward_scale, self.clip_reward, self.end_of_life_is_terminal
        )
        # 2. The value of each next state: within an episode, that of the next step. Only the last states of
        #    truncated episodes and of the rollout were never acted in, and are computed now.
        next_value = next_values(
            value,
            next_["observation"],
            done,
            terminated,
            lambda observation: max_q_value(self.forward(observation)),
        )
        # 3. The targets, G = r + gamma ((1 - lambda) v(s') + lambda G').
        reward, done, terminated = (send(part, self.device) for part in (reward, done, terminated))
        target = lambda_return(reward, next_value, done, terminated, self.gamma, self.lambda_)

        transitions = send(rollout.select("observation", "action"), self.device)
        transitions["target"] = target
        return transitions.flatten(0, 1)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """Return the loss of a minibatch of `process_rollout`'s transitions, ``(batch,)``."""
        target = batch["target"]

        # 1. What the network says of all actions in the states of the batch: Q(s, .), or its distribution.
        outputs = self.q_network(batch["observation"])
        q_values = self.values.mean(outputs.detach())

        # 2. The actions that were taken move towards the targets of the rollout.
        losses = self.values.losses(of_action(outputs, batch["action"]), self.values.encoded(target))
        loss = losses.mean()

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
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and, where asked for, the schedule over environment steps."""
        optimizer = make_optimizer(self.build_optimizer, self.q_network.parameters())
        return self.annealed(optimizer, "epoch")
