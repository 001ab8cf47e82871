"""What agents share that learn action values: their network, and how they act on it."""

from __future__ import annotations

import math
from typing import Literal

from tensordict import TensorDictBase
from torch import Tensor, nn

from lit_gfs.agents.agent import Agent
from lit_gfs.agents.learner import OptimizerFactory
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError, require_between
from lit_gfs.functional.exploration import epsilon_greedy, linear_schedule
from lit_gfs.functional.losses import q_loss
from lit_gfs.networks import EncoderFactory, Initialization, LinearHead, Network, TrunkFactory, named_layers


class QNetwork(Network):
    """One value per action, ``(*batch, num_actions)``, on top of encoder and trunk."""

    def __init__(
        self,
        spec: EnvSpec,
        encoder: EncoderFactory | None,
        trunk: TrunkFactory,
        initialization: Initialization,
    ) -> None:
        super().__init__(spec.observation_shape, encoder, trunk, initialization)
        assert spec.num_actions is not None
        self.head = LinearHead(self.out_features, spec.num_actions, gain=1.0)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to action values, in float32 under any precision."""
        return self.head(self.features(observation)).float()


class QLearningAgent(Agent):
    """Base of the agents that act epsilon-greedily on action values; a subclass says what these learn.

    Args:
        env_spec: The environment's spaces.
        encoder: Builds the encoder; ``None`` leaves the choice to `lit_gfs.networks.default_encoder`.
        trunk: Builds the trunk.
        optimizer: Builds the optimizer.
        initialization: ``orthogonal`` (gain sqrt(2)) or ``torch`` (PyTorch's defaults).
        gamma: Discount per environment step.
        loss: ``huber`` (threshold 1) or ``mse`` on the temporal-difference error.
        epsilon_start: Probability of a random action at step 0.
        epsilon_end: Probability of a random action once decayed.
        epsilon_decay_steps: Environment steps over which epsilon falls linearly.
        evaluation_epsilon: Probability of a random action in evaluation.
        anneal_learning_rate: Whether the learning rate falls linearly to 0 over the run.
        clip_reward: Whether the learner sees rewards, once scaled, clipped to [-1, 1].
        end_of_life_is_terminal: Whether a lost life cuts the bootstrap (Atari); the game goes on.
        reward_scale: Factor on the rewards that the learner sees.
        compile: Whether ``torch.compile`` compiles the networks when fitting starts.

    Raises:
        UserError: If an action is more than one of a number of them, or a number is out of range.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        *,
        encoder: EncoderFactory | None,
        trunk: TrunkFactory,
        optimizer: OptimizerFactory,
        initialization: Initialization,
        gamma: float,
        loss: Literal["huber", "mse"],
        epsilon_start: float,
        epsilon_end: float,
        epsilon_decay_steps: int,
        evaluation_epsilon: float,
        anneal_learning_rate: bool,
        clip_reward: bool,
        end_of_life_is_terminal: bool,
        reward_scale: float,
        compile: bool,
    ) -> None:
        super().__init__(env_spec, compile)
        if not env_spec.is_discrete:
            choices = env_spec.action_choices
            kind = "a continuous action space" if choices is None else "actions of several choices"
            raise UserError(
                f"{type(self).__name__} needs discrete actions, but {env_spec.env_id!r} has {kind} of "
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
        require_between(0, math.inf, epsilon_decay_steps=epsilon_decay_steps)
        self.q_network = QNetwork(env_spec, encoder, trunk, initialization)
        self.build_optimizer = optimizer
        self.gamma = gamma
        self.loss_function: Literal["huber", "mse"] = loss
        self.epsilon_start, self.epsilon_end = epsilon_start, epsilon_end
        self.epsilon_decay_steps = epsilon_decay_steps
        self.evaluation_epsilon = evaluation_epsilon
        self.anneal_learning_rate = anneal_learning_rate
        self.clip_reward = clip_reward
        self.end_of_life_is_terminal = end_of_life_is_terminal
        self.reward_scale = reward_scale

    @property
    def trunk(self) -> nn.Module:
        """The trunk of the network that acts."""
        return self.q_network.trunk

    @property
    def policy_head(self) -> nn.Module:
        """The layer whose outputs are action values."""
        return self.q_network.head

    def policy_features(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to the trunk's output."""
        return self.q_network.features(observation)

    def named_layers(self) -> dict[str, nn.Module]:
        """The layers of the network that acts, named from there: ``trunk.layers.0``, ``head`` ..."""
        return named_layers(self.q_network)

    # -- acting ------------------------------------------------------------------------------------------

    @property
    def epsilon(self) -> float:
        """The probability of a random action now."""
        return linear_schedule(self.env_steps, self.epsilon_start, self.epsilon_end, self.epsilon_decay_steps)

    def collection_policy(self) -> Policy:
        """Act epsilon-greedily; every env draws for itself."""
        return Policy(
            lambda observation: {"action": epsilon_greedy(self.q_network(observation), self.epsilon)},
            ["action"],
        )

    def evaluation_policy(self) -> Policy:
        """Act greedily, but for `evaluation_epsilon`."""
        return Policy(
            lambda observation: {
                "action": epsilon_greedy(self.q_network(observation), self.evaluation_epsilon)
            },
            ["action"],
        )

    # -- learning ----------------------------------------------------------------------------------------

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to action values ``(*batch, num_actions)``."""
        return self.q_network(observation)

    def outcome(self, following: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """Return what followed as the learner sees it: reward, done and terminated, ``(*batch,)`` each."""
        reward, done, terminated = (following[key].squeeze(-1) for key in ("reward", "done", "terminated"))
        if self.reward_scale != 1:
            reward = self.reward_scale * reward
        if self.clip_reward:
            reward = reward.clamp(-1, 1)
        if self.end_of_life_is_terminal:
            lost = following["end_of_life"].squeeze(-1)
            done, terminated = done | lost, terminated | lost
        return reward, done, terminated

    def batch_target(self, batch: TensorDictBase) -> Tensor:
        """Return what the values of a batch's actions are trained towards, ``(batch,)``."""
        raise NotImplementedError

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
        target = self.batch_target(batch)
        loss, td_error = q_loss(q_values, batch["action"], target, self.loss_function)
        return loss, {
            "loss/q": loss,
            "loss/td_error": td_error.abs(),
            "loss/q_value": q_values,
            "loss/target": target,
        }

    def schedule_values(self) -> dict[str, float]:
        """Return learning rate and epsilon."""
        return {**super().schedule_values(), "schedule/epsilon": self.epsilon}
