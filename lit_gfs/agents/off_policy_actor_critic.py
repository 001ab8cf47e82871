"""The common base of SAC and TD3: critics of continuous actions, slow copies of them, and one optimizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDictBase
from torch import Tensor, nn

from lit_gfs.agents.agent import Agent, require_normalizable
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError, require_between
from lit_gfs.functional.exploration import epsilon_uniform
from lit_gfs.networks import (
    EncoderFactory,
    Initialization,
    LinearHead,
    Network,
    RunningNorm,
    TrunkFactory,
    frozen,
    move_towards_,
    numbered_layers,
)
from lit_gfs.optim.factory import make_optimizer
from lit_gfs.utils.transfers import send


class Critic(Network):
    """Q(s, a), the value of an action in a state, on an encoder and a trunk of its own.

    The trunk reads the encoder's features and the action, scaled to [-1, 1].
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoder: EncoderFactory | None,
        trunk: TrunkFactory,
        initialization: Initialization,
    ) -> None:
        super().__init__(
            spec.observation_shape,
            encoder,
            lambda features: trunk(features + spec.action_dim),
            initialization,
        )
        self.head = LinearHead(self.out_features, 1, gain=1.0)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:  # type: ignore[override]
        """Map observations ``(*batch, *shape)`` and actions ``(*batch, dim)`` to values ``(*batch,)``."""
        features = self.trunk(torch.cat([self.encoder(observation), action], -1))
        return self.head(features).squeeze(-1).float()


class OffPolicyActorCritic(Agent):
    """Base of the agents that learn a policy of continuous actions from replayed transitions.

    Actor and critics have encoders and trunks of their own and share nothing but the statistics of
    observations. So each part of the loss reaches the parameters of one part alone, and one optimizer, with a
    group of parameters for each part, takes the step that an optimizer for each part would take. Kron is the
    exception where the policy learns in some steps alone, because it counts steps for all parts together. A
    subclass sets `actor`, whose ``trunk`` and ``head`` callbacks read.

    Args:
        env_spec: The environment's spaces; the command line fills it in from the datamodule.
        critic_trunk: Builds the trunk of each critic; ``null`` builds the actor's, from ``trunk``.
        critics: Number of critics; the smallest of their values is learned from.
        critic_learning_rate: Learning rate of the critics; ``null`` takes the optimizer's, the actor's rate.
        target_tau: Share by which the target networks move towards the weights after an optimizer step.
        random_steps: Environment steps in which actions are uniformly random; ``null`` takes the
            ``learning_starts`` of the data.
        normalize_observation: Whether observations (vectors) are standardized by running statistics of all
            that was collected. They are part of the model: saved, and frozen in evaluation.
        options: Rewards and discount, see `Agent`; networks and optimizer, see `Learner`.

    Raises:
        UserError: If actions are not continuous or have no bounds, a number is out of range, or images are to
            be standardized by running statistics.
    """

    actor: Network

    def __init__(
        self,
        env_spec: EnvSpec,
        *,
        critic_trunk: TrunkFactory | None = None,
        critics: int = 2,
        critic_learning_rate: float | None = None,
        target_tau: float = 0.005,
        random_steps: int | None = None,
        normalize_observation: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(env_spec, **options)
        _require_bounds(type(self).__name__, env_spec)
        require_between(1, math.inf, critics=critics)
        require_between(0, math.inf, critic_learning_rate=critic_learning_rate, random_steps=random_steps)
        if not 0 < target_tau <= 1:
            raise UserError(f"target_tau is {target_tau:g}; expected a number above 0 and at most 1")
        require_normalizable(env_spec, normalize_observation)
        self.register_action_bounds()
        self.observation_norm = RunningNorm(env_spec.observation_shape) if normalize_observation else None
        self.critics = nn.ModuleList(
            Critic(env_spec, self.build_encoder, critic_trunk or self.build_trunk, self.initialization)
            for _ in range(critics)
        )
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.critic_learning_rate = critic_learning_rate
        self.target_tau = target_tau
        self.random_steps = random_steps
        # `forward` takes an observation and an action.
        self.example_input_array = (
            torch.zeros(1, *env_spec.observation_shape),
            torch.zeros(1, env_spec.action_dim),
        )

    # -- what callbacks read -----------------------------------------------------------------------------

    @property
    def trunk(self) -> nn.Module:
        """The actor's trunk."""
        return self.actor.trunk

    @property
    def policy_head(self) -> nn.Module:
        """The layer whose outputs are actions before tanh."""
        return cast(nn.Module, self.actor.head)

    def policy_features(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to the output of the actor's trunk."""
        return self.actor.features(self.normalize(observation))

    def named_layers(self) -> dict[str, nn.Module]:
        """The actor's layers by the names that other agents give theirs, then those of the critics.

        These are ``critic_1.trunk.layer_01``, ``critic_1.head``, ``critic_2.trunk.layer_01`` ... Target
        networks, which are not trained, have no layers.
        """
        layers = numbered_layers(self.actor)
        for number, critic in enumerate(self.critics, start=1):
            layers |= {f"critic_{number}.{name}": each for name, each in numbered_layers(critic).items()}
        return layers

    # -- acting ------------------------------------------------------------------------------------------

    def collection_policy(self) -> Policy:
        """Act at random at first, then as the policy explores."""

        def act(observation: Tensor, epsilon: float | Tensor) -> dict[str, Tensor]:
            action = self.explore(self.normalize(observation))
            return {"action": epsilon_uniform(action, self.action_low, self.action_high, epsilon)}

        return Policy(act, ["action"], lambda: {"epsilon": float(self.acts_randomly)})

    @property
    def acts_randomly(self) -> bool:
        """Whether collected actions are uniformly random now."""
        starts = (
            getattr(self.source, "learning_starts", 0) if self.random_steps is None else self.random_steps
        )
        return self.env_steps < starts

    def eval_policy(self) -> Policy:
        """Take the policy's actions without exploration."""

        def act(observation: Tensor) -> dict[str, Tensor]:
            action = self.greedy(self.normalize(observation))
            return {"action": action.clamp(self.action_low, self.action_high)}

        return Policy(act, ["action"])

    def explore(self, observation: Tensor) -> Tensor:
        """Map normalized observations ``(*batch, *shape)`` to the actions that collect experience."""
        raise NotImplementedError

    def greedy(self, observation: Tensor) -> Tensor:
        """Map normalized observations ``(*batch, *shape)`` to the best actions, ``(*batch, dim)``."""
        raise NotImplementedError

    def normalize(self, observation: Tensor) -> Tensor:
        """Standardize observations with the statistics so far, alike for actor, critics and targets."""
        return observation if self.observation_norm is None else self.observation_norm(observation)

    def on_collection_end(self, rollout: TensorDictBase) -> None:
        """Note episodes and observations, and take the observations into their statistics, once each."""
        super().on_collection_end(rollout)
        self.take_statistics([rollout["observation"].flatten(0, 1)])

    def take_statistics(self, observations: Iterable[Tensor]) -> None:
        """Take parts of the experience into the statistics of observations, if there are any."""
        if self.observation_norm is None:
            return
        for part in observations:
            self.observation_norm.observe(send(part, self.device))
        self.observation_norm.commit()

    # -- learning ----------------------------------------------------------------------------------------

    def values(self, critics: Iterable[nn.Module], observation: Tensor, action: Tensor) -> Tensor:
        """Return critics' values of actions.

        Args:
            critics: `critics`, `target_critics`, or some of them.
            observation: Normalized observations, ``(batch, *shape)``.
            action: Actions as the environment takes them, ``(batch, dim)``.

        Returns:
            Values, ``(critics, batch)``.
        """
        return torch.stack(self.each_value(critics, observation, action))

    def each_value(self, critics: Iterable[nn.Module], observation: Tensor, action: Tensor) -> list[Tensor]:
        """Return critics' values of actions as `values`, ``(*batch,)`` each."""
        # Each critic has a scaled action of its own: path-sensitive initialization takes one tensor that
        # several layers read for the repeated input of one network.
        return [critic(observation, (action - self.action_center) / self.action_scale) for critic in critics]

    def values_of_policy(self, critics: Iterable[nn.Module], observation: Tensor, action: Tensor) -> Tensor:
        """Return critics' values as `values`, whose gradients reach the actions, but not the critics."""
        with frozen(self.critics):
            return self.values(critics, observation, action)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Take an optimizer step; move the target networks with the policy."""
        super().optimizer_step(*arguments, **options)
        if self.policy_is_due:
            self.move_targets(self.target_tau)

    @property
    def policy_is_due(self) -> bool:
        """Whether the policy learns in this optimizer step."""
        return True

    def move_targets(self, share: float) -> None:
        """Move the target networks towards the weights by a share; 1 copies them."""
        move_towards_(self.target_critics, self.critics, share)

    def on_weights_initialized(self) -> None:
        """Start with equal networks after a callback has changed the weights."""
        self.move_targets(1.0)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return a group of parameters for the optimizer for each part of the loss."""
        return [parameter_group(self.actor), parameter_group(self.critics, self.critic_learning_rate)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build one optimizer over all groups and, where asked for, its schedule."""
        optimizer = make_optimizer(self.build_optimizer, self.parameter_groups())
        return self.annealed(optimizer, "step")


def parameter_group(module: nn.Module, learning_rate: float | None = None) -> dict[str, Any]:
    """Return a module's parameters as a group of an optimizer, with a learning rate of its own if given."""
    group: dict[str, Any] = {"params": list(module.parameters())}
    return group if learning_rate is None else {**group, "lr": learning_rate}


def _require_bounds(agent: str, spec: EnvSpec) -> None:
    """Check that actions are continuous and lie between finite bounds."""
    if spec.action_low is None or spec.action_high is None:
        kind, others = (
            (f"{spec.num_actions} discrete actions", "DQN, PQN or PPO")
            if spec.is_discrete
            else ("actions of several choices", "PPO")
        )
        raise UserError(f"{agent} needs continuous actions, but {spec.env_id!r} has {kind}; use {others}")
    for index, (low, high) in enumerate(zip(spec.action_low, spec.action_high, strict=True)):
        if not 0 < high - low <= torch.finfo(torch.float32).max:
            raise UserError(
                f"{agent} needs actions between two bounds, but dimension {index} of {spec.env_id!r} is from "
                f"{low:g} to {high:g}; use PPO"
            )
