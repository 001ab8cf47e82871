"""Deep Q-learning (Mnih et al. 2015), with double Q-learning (van Hasselt et al. 2016) as an option."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Adam

from lit_gfs.agents.base import (
    Agent,
    EncoderFactory,
    Initialization,
    Network,
    OptimizerFactory,
    Policy,
    TrunkFactory,
)
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError, require_between
from lit_gfs.losses import double_q_value, max_q_value, q_loss
from lit_gfs.networks import LinearHead, PlainTrunk, named_layers
from lit_gfs.returns import td_target
from lit_gfs.schedules import linear_schedule


class QNetwork(Network):
    """One value per action, ``(*batch, num_actions)``, on top of encoder and trunk."""

    def __init__(
        self,
        spec: EnvSpec,
        encoder: EncoderFactory | None,
        trunk: TrunkFactory,
        initialization: Initialization,
    ) -> None:
        super().__init__(spec, encoder, trunk, initialization)
        assert spec.num_actions is not None
        self.head = LinearHead(self.out_features, spec.num_actions, gain=1.0)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to action values, in float32 under any precision."""
        return self.head(self.features(observation)).float()


class DQN(Agent):
    """Deep Q-learning from replayed experience.

    Args:
        env_spec: The environment's spaces; the command line fills it in.
        encoder: Builds the encoder; ``null`` picks Nature CNN for pixels, a flat vector otherwise.
        trunk: Builds the trunk.
        optimizer: Builds the optimizer.
        initialization: ``orthogonal`` (gain sqrt(2)) or ``torch`` (PyTorch's defaults).
        gamma: Discount per environment step.
        target_sync_every: Environment steps between copies of the weights to the target network.
        double: Whether the online network chooses the action that the target network values.
        loss: ``huber`` (threshold 1) or ``mse`` on the temporal-difference error.
        epsilon_start: Probability of a random action at step 0.
        epsilon_end: Probability of a random action once decayed.
        epsilon_decay_steps: Environment steps over which epsilon falls linearly.
        evaluation_epsilon: Probability of a random action in evaluation; 0.001 is usual on Atari.
        anneal_learning_rate: Whether the learning rate falls linearly to 0 over the run.
        clip_reward: Whether the learner sees rewards clipped to [-1, 1]; reported returns stay raw.
        end_of_life_is_terminal: Whether a lost life cuts the bootstrap (Atari); the game goes on.

    Raises:
        UserError: If the environment's actions are continuous.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        encoder: EncoderFactory | None = None,
        trunk: TrunkFactory = PlainTrunk,
        optimizer: OptimizerFactory = Adam,
        initialization: Initialization = "orthogonal",
        gamma: float = 0.99,
        target_sync_every: int = 1_000,
        double: bool = False,
        loss: Literal["huber", "mse"] = "huber",
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.01,
        epsilon_decay_steps: int = 10_000,
        evaluation_epsilon: float = 0.0,
        anneal_learning_rate: bool = False,
        clip_reward: bool = False,
        end_of_life_is_terminal: bool = False,
    ) -> None:
        super().__init__(env_spec)
        if not env_spec.is_discrete:
            raise UserError(
                f"DQN needs discrete actions, but {env_spec.env_id!r} has a continuous action space of "
                f"dimension {env_spec.action_dim}; use PPO"
            )
        require_between(
            0,
            1,
            gamma=gamma,
            epsilon_start=epsilon_start,
            epsilon_end=epsilon_end,
            evaluation_epsilon=evaluation_epsilon,
        )
        require_between(1, math.inf, target_sync_every=target_sync_every)
        require_between(0, math.inf, epsilon_decay_steps=epsilon_decay_steps)
        self.q_network = QNetwork(env_spec, encoder, trunk, initialization)
        self.target_network = copy.deepcopy(self.q_network).requires_grad_(False)
        self.build_optimizer = optimizer
        self.gamma = gamma
        self.target_sync_every = target_sync_every
        self.uses_double_q = double  # `double` is a method of every module
        self.loss_function: Literal["huber", "mse"] = loss
        self.epsilon_start, self.epsilon_end = epsilon_start, epsilon_end
        self.epsilon_decay_steps = epsilon_decay_steps
        self.evaluation_epsilon = evaluation_epsilon
        self.anneal_learning_rate = anneal_learning_rate
        self.clip_reward = clip_reward
        self.end_of_life_is_terminal = end_of_life_is_terminal
        self._synced_at = 0

    @property
    def trunk(self) -> nn.Module:
        """The online network's trunk."""
        return self.q_network.trunk

    @property
    def policy_head(self) -> nn.Module:
        """The layer whose outputs are action values."""
        return self.q_network.head

    def policy_features(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to the trunk's output."""
        return self.q_network.features(observation)

    def named_layers(self) -> dict[str, nn.Module]:
        """The online network's layers, named from there: ``trunk.layers.0``, ``head`` ..."""
        return named_layers(self.q_network)

    # -- acting ------------------------------------------------------------------------------------------

    @property
    def epsilon(self) -> float:
        """The probability of a random action now."""
        return linear_schedule(self.env_steps, self.epsilon_start, self.epsilon_end, self.epsilon_decay_steps)

    def collection_policy(self) -> Policy:
        """Act epsilon-greedily; every env draws for itself."""
        return Policy(lambda observation: {"action": self._act(observation, self.epsilon)}, ["action"])

    def evaluation_policy(self) -> Policy:
        """Act greedily, but for `evaluation_epsilon`."""
        return Policy(
            lambda observation: {"action": self._act(observation, self.evaluation_epsilon)}, ["action"]
        )

    def _act(self, observation: Tensor, epsilon: float) -> Tensor:
        greedy = self.q_network(observation).argmax(-1)
        if epsilon == 0:
            return greedy
        explore = torch.rand_like(greedy, dtype=torch.float32) < epsilon
        return torch.where(explore, torch.randint_like(greedy, self.q_network.head.out_features), greedy)

    # -- learning ----------------------------------------------------------------------------------------

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to action values ``(*batch, num_actions)``."""
        return self.q_network(observation)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """Return the loss of a batch of transitions, ``(batch,)``."""
        loss, values = self._loss(batch)
        self.record(values)
        return loss

    def loss(self, batch: TensorDictBase) -> Tensor:
        """Return the loss of a batch of transitions, without a trace."""
        return self._loss(batch)[0]

    def _loss(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        q_values = self.q_network(batch["observation"])
        target = self.target(batch["next"])
        loss, td_error = q_loss(q_values, batch["action"], target, self.loss_function)
        return loss, {
            "loss/q": loss,
            "loss/td_error": td_error.abs().mean(),
            "loss/q_value": q_values.mean(),
            "loss/target": target.mean(),
        }

    @torch.no_grad()
    def target(self, following: TensorDictBase) -> Tensor:
        """Return the temporal-difference target ``(batch,)`` of what followed: reward and next state."""
        reward = following["reward"].squeeze(-1)
        terminated = following["terminated"].squeeze(-1)
        if self.clip_reward:
            reward = reward.clamp(-1, 1)
        if self.end_of_life_is_terminal:
            terminated = terminated | following["end_of_life"].squeeze(-1)
        target_q = self.target_network(following["observation"])
        if self.uses_double_q:
            next_value = double_q_value(self.q_network(following["observation"]), target_q)
        else:
            next_value = max_q_value(target_q)
        return td_target(reward, next_value, terminated, self.gamma)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Copy the weights to the target network whenever its period is over."""
        if self.env_steps // self.target_sync_every > self._synced_at // self.target_sync_every:
            self.sync_target()
            self.announce_objective_shift("target_sync")

    @torch.no_grad()
    def sync_target(self) -> None:
        """Copy the weights to the target network."""
        self.target_network.load_state_dict(self.q_network.state_dict())
        self._synced_at = self.env_steps

    def on_weights_initialized(self) -> None:
        """Start with equal networks, whoever changed the weights before training."""
        self.sync_target()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over the online network and, where asked for, its schedule."""
        optimizer = self.make_optimizer(self.build_optimizer, self.q_network.parameters())
        return self.annealed(optimizer, "step") if self.anneal_learning_rate else optimizer

    def schedule_values(self) -> dict[str, float]:
        """Return learning rate and epsilon."""
        return {**super().schedule_values(), "schedule/epsilon": self.epsilon}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep when the target network was last copied."""
        checkpoint["target_synced_at"] = self._synced_at

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the same target period."""
        self._synced_at = checkpoint.get("target_synced_at", 0)  # of another agent: refused as such
