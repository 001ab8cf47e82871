"""The common base of DQN and PQN: a network of action values, and epsilon-greedy acting on it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from lit_gfs.agents.agent import Agent
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError, require_between
from lit_gfs.functional.exploration import epsilon_greedy, linear_schedule
from lit_gfs.functional.value_distributions import ValueDistribution, ValueLoss
from lit_gfs.networks import (
    ActionValueHead,
    EncoderFactory,
    Initialization,
    Network,
    TrunkFactory,
    numbered_layers,
)
from lit_gfs.networks.noise import make_noisy


class QNetwork(Network):
    """Outputs that state the value of each action, on top of encoder and trunk.

    Args:
        spec: The environment's spaces.
        encoder: Builds the encoder.
        trunk: Builds the trunk.
        initialization: Initialization of encoder and trunk.
        size: Outputs for each value: 1, or the atoms of a distribution.
        dueling: Whether the outputs are sums of the state's value and of advantages.
        noisy: Whether the linear layers of trunk and head are noisy.
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoder: EncoderFactory | None,
        trunk: TrunkFactory,
        initialization: Initialization,
        size: int = 1,
        dueling: bool = False,
        noisy: bool = False,
    ) -> None:
        super().__init__(spec.observation_shape, encoder, trunk, initialization)
        assert spec.num_actions is not None
        if noisy:
            make_noisy(self.trunk)
        self.head = ActionValueHead(self.out_features, spec.num_actions, size, dueling, noisy)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to outputs, in float32 under any precision.

        Returns:
            Action values ``(*batch, num_actions)``, or logits ``(*batch, num_actions, size)``.
        """
        return self.head(self.features(observation)).float()


class ExpectedValues(nn.Module):
    """A head whose outputs state distributions, as one that gives their expectations.

    Args:
        head: The head.
        values: Turns its outputs into values.
    """

    def __init__(self, head: nn.Module, values: ValueDistribution) -> None:
        super().__init__()
        self.head = head
        self.values = values

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(*batch, in_features)`` to action values ``(*batch, num_actions)``."""
        return self.values.mean(self.head(features))


class QLearningAgent(Agent):
    """Base of the agents that act epsilon-greedily on action values; a subclass trains the values.

    Args:
        env_spec: The environment's spaces; the command line fills it in from the datamodule.
        loss: ``huber`` (threshold 1) or ``mse`` on the temporal-difference error; or, for values that are the
            means of distributions over ``atoms`` atoms, the cross-entropy to a distribution that is projected
            (``c51``) or a Gaussian around the target (``hl_gauss``), see
            `lit_gfs.functional.value_distributions`.
        dueling: Whether the head has a stream for the state's value and one for the actions' advantages, Q =
            V + A - mean of A (Wang et al. 2016).
        noisy: Whether trained noise on the weights of trunk and head explores (Fortunato et al. 2018), beside
            epsilon, which may then be 0. Evaluation is without noise.
        epsilon_start: Probability of a random action at step 0.
        epsilon_end: Probability of a random action once decayed.
        epsilon_decay_steps: Environment steps over which epsilon falls linearly.
        eval_epsilon: Probability of a random action in evaluation; 0.001 is usual on Atari.
        options: What all agents share, see `Agent` and `Learner`.

    Raises:
        UserError: If an action is more than one index, or a number is out of range.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        *,
        loss: ValueLoss = "huber",
        dueling: bool = False,
        noisy: bool = False,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.01,
        epsilon_decay_steps: int = 10_000,
        eval_epsilon: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(env_spec, **options)
        if not env_spec.is_discrete:
            choices = env_spec.action_choices
            kind, others = (
                ("a continuous action space", "PPO, SAC or TD3")
                if choices is None
                else ("actions of several choices", "PPO")
            )
            raise UserError(
                f"{type(self).__name__} needs discrete actions, but {env_spec.env_id!r} has {kind} of "
                f"dimension {env_spec.action_dim}; use {others}"
            )
        require_between(0, 1, epsilon_start=epsilon_start, epsilon_end=epsilon_end, eval_epsilon=eval_epsilon)
        require_between(0, math.inf, epsilon_decay_steps=epsilon_decay_steps)
        self.loss_function = loss
        self.values = self.value_distribution(loss)
        """How the network states values."""
        self.q_network = QNetwork(
            env_spec,
            self.build_encoder,
            self.build_trunk,
            self.initialization,
            self.values.size,
            dueling,
            noisy,
        )
        self.epsilon_start, self.epsilon_end = epsilon_start, epsilon_end
        self.epsilon_decay_steps = epsilon_decay_steps
        self.eval_epsilon = eval_epsilon

    # -- what callbacks read -----------------------------------------------------------------------------

    @property
    def trunk(self) -> nn.Module:
        """The trunk of the network that acts."""
        return self.q_network.trunk

    @property
    def policy_head(self) -> nn.Module:
        """The module that maps the trunk's output to action values: the head, or the means of its outputs."""
        head = self.q_network.head
        return head if self.values.size == 1 else ExpectedValues(head, self.values)

    def policy_features(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to the trunk's output."""
        return self.q_network.features(observation)

    def named_layers(self) -> dict[str, nn.Module]:
        """The layers of the network that acts, named from there: ``trunk.layer_01``, ``head`` ..."""
        return numbered_layers(self.q_network)

    # -- acting ------------------------------------------------------------------------------------------

    @property
    def epsilon(self) -> float:
        """The probability of a random action now."""
        return linear_schedule(self.env_steps, self.epsilon_start, self.epsilon_end, self.epsilon_decay_steps)

    def collection_policy(self) -> Policy:
        """Act epsilon-greedily; every environment draws for itself."""
        return Policy(
            lambda observation, epsilon: {"action": epsilon_greedy(self.forward(observation), epsilon)},
            ["action"],
            lambda: {"epsilon": self.epsilon},
        )

    def eval_policy(self) -> Policy:
        """Act greedily, but for `eval_epsilon`."""
        return Policy(
            lambda observation: {"action": epsilon_greedy(self.forward(observation), self.eval_epsilon)},
            ["action"],
        )

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to action values ``(*batch, num_actions)``."""
        return self.values.mean(self.q_network(observation))

    # -- reporting ---------------------------------------------------------------------------------------

    def schedule_values(self) -> dict[str, float]:
        """Return learning rate and epsilon."""
        return {**super().schedule_values(), "schedule/epsilon": self.epsilon}
