"""Deep Q-learning (Mnih et al. 2015), with double Q-learning (van Hasselt et al. 2016) as an option."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDictBase
from torch import Tensor
from torch.optim import Adam

from lit_gfs.agents.learner import OptimizerFactory
from lit_gfs.agents.q_learning import QLearningAgent
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import require_between
from lit_gfs.functional.losses import double_q_value, max_q_value
from lit_gfs.functional.returns import td_target
from lit_gfs.networks import EncoderFactory, Initialization, PlainTrunk, TrunkFactory


class DQN(QLearningAgent):
    """Deep Q-learning from replayed experience.

    Args:
        env_spec: The environment's spaces; the command line fills it in.
        encoder: Builds the encoder; ``null`` leaves the choice to `lit_gfs.networks.default_encoder`.
        trunk: Builds the trunk.
        optimizer: Builds the optimizer; the default is Adam with PyTorch's own settings (rate 1e-3), not
            those of the shipped configurations.
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
        reward_scale: Factor on the rewards that the learner sees, to bring values to the order of 1; reported
            returns stay raw.
        clip_reward: Whether the learner sees rewards, once scaled, clipped to [-1, 1].
        end_of_life_is_terminal: Whether a lost life cuts the bootstrap (Atari); the game goes on.
        compile: Whether ``torch.compile`` compiles the networks when fitting starts; on a CPU that needs a
            C++ compiler.

    Raises:
        UserError: If the environment's actions are continuous, or a number is out of range.
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
        reward_scale: float = 1.0,
        clip_reward: bool = False,
        end_of_life_is_terminal: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(
            env_spec,
            encoder=encoder,
            trunk=trunk,
            optimizer=optimizer,
            initialization=initialization,
            gamma=gamma,
            loss=loss,
            epsilon_start=epsilon_start,
            epsilon_end=epsilon_end,
            epsilon_decay_steps=epsilon_decay_steps,
            evaluation_epsilon=evaluation_epsilon,
            anneal_learning_rate=anneal_learning_rate,
            reward_scale=reward_scale,
            clip_reward=clip_reward,
            end_of_life_is_terminal=end_of_life_is_terminal,
            compile=compile,
        )
        require_between(1, math.inf, target_sync_every=target_sync_every)
        self.target_network = copy.deepcopy(self.q_network).requires_grad_(False)
        self.target_sync_every = target_sync_every
        self.uses_double_q = double  # `double` is a method of every module
        self._synced_at = 0

    def batch_target(self, batch: TensorDictBase) -> Tensor:
        """Return the temporal-difference targets of a batch of transitions, ``(batch,)``."""
        return self.target(batch["next"])

    @torch.no_grad()
    def target(self, following: TensorDictBase) -> Tensor:
        """Return the temporal-difference target ``(batch,)`` of what followed: reward and next state."""
        reward, _, terminated = self.outcome(following)
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep when the target network was last copied."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["target_synced_at"] = self._synced_at

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the same target period."""
        super().on_load_checkpoint(checkpoint)
        self._synced_at = checkpoint.get("target_synced_at", 0)
