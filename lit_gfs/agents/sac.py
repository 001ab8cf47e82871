"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), with automatic temperature.

The policy is a Gaussian squashed into the bounds of the actions. It maximizes the return plus its own
entropy, weighted by a temperature. Two critics learn Q(s, a) of this sum from replayed transitions, and the
smaller of their values counts, because a policy climbs towards the errors of a single critic. The temperature
rises while the policy has less entropy than its target, and falls otherwise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from lit_gfs.agents.off_policy_actor_critic import OffPolicyActorCritic, parameter_group
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import require_above, require_between
from lit_gfs.functional.actor_critic import critic_loss, soft_policy_loss, soft_value, temperature_loss
from lit_gfs.functional.returns import n_step_return, td_target
from lit_gfs.functional.squashed_gaussian import SquashedGaussian, bounded_log_std
from lit_gfs.networks import EncoderFactory, Initialization, LinearHead, Network, TrunkFactory


class GaussianActor(Network):
    """Means and log standard deviations of unsquashed actions, on one encoder and trunk."""

    def __init__(
        self,
        spec: EnvSpec,
        encoder: EncoderFactory | None,
        trunk: TrunkFactory,
        initialization: Initialization,
    ) -> None:
        super().__init__(spec.observation_shape, encoder, trunk, initialization)
        self.head = LinearHead(self.out_features, spec.action_dim, gain=0.01)
        self.log_std_head = LinearHead(self.out_features, spec.action_dim, gain=0.01)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Map observations ``(*batch, *shape)`` to the heads' outputs, ``(*batch, dim)`` each, in float32."""
        features = self.features(observation)
        return self.head(features).float(), self.log_std_head(features).float()


class Temperature(nn.Module):
    """The weight of the entropy, a positive number that is trained by its logarithm.

    Args:
        initial: Its value at first.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log_value = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Tensor:
        """Return the temperature ``()``."""
        return self.log_value.exp()


class SAC(OffPolicyActorCritic):
    """Soft actor-critic.

    The temperature is no layer: callbacks that change gradients layer by layer leave it alone.

    Args:
        env_spec: The environment's spaces; the command line fills it in from the datamodule.
        target_entropy: The entropy per dimension of the action that the temperature holds the policy at, in
            nats, of actions scaled to [-1, 1]: 0.69 is uniform, and every nat less divides the range by e.
        initial_temperature: The weight of the entropy at first.
        temperature_learning_rate: Learning rate of the temperature; ``null`` takes the optimizer's, and 0
            keeps the temperature as it is.
        options: Critics, target networks and random actions, see `OffPolicyActorCritic`; rewards and
            discount, see `Agent`; networks and optimizer, see `Learner`.

    Raises:
        UserError: If actions are not continuous or have no bounds, or a number is out of range.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        *,
        target_entropy: float = -1.0,
        initial_temperature: float = 1.0,
        temperature_learning_rate: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(env_spec, **options)
        require_between(-math.inf, math.log(2), target_entropy=target_entropy)
        require_between(0, math.inf, temperature_learning_rate=temperature_learning_rate)
        require_above(0, initial_temperature=initial_temperature)
        self.actor: GaussianActor = GaussianActor(
            env_spec, self.build_encoder, self.build_trunk, self.initialization
        )
        self.temperature = Temperature(initial_temperature)
        self.temperature_learning_rate = temperature_learning_rate
        # Densities are in the units of the actions, so their scale belongs to the entropy.
        self.entropy_target = env_spec.action_dim * target_entropy + float(self.action_scale.log().sum())

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """Return the loss of a batch of transitions, ``(batch,)``."""
        next_ = batch["next"]
        observation, next_observation = (self.normalize(each["observation"]) for each in (batch, next_))
        temperature = self.temperature()

        # 1. Actions that the policy of today draws in the states of the batch.
        action, log_prob = self.policy(observation).sample_with_log_prob()

        with torch.no_grad():
            # 2. The rewards up to the next state as the learner sees them; entropy on the way does not count.
            #    A lost life may count as the end of the episode.
            reward, terminated, discount = n_step_return(
                next_, self.gamma, self.reward_scale, self.clip_reward, self.end_of_life_is_terminal
            )
            # 3. The soft value of the next state: the target critics' value of an action that the policy
            #    draws there, and the entropy of the policy.
            next_action, next_log_prob = self.policy(next_observation).sample_with_log_prob()
            next_values = self.values(self.target_critics, next_observation, next_action)
            next_value = soft_value(next_values, next_log_prob, temperature)
            # 4. The target r + gamma v(s'). A terminated episode has no next state; a truncated one does.
            target = td_target(reward, next_value, terminated, discount)

        # 5. The critics: their values of the actions that were taken move towards the target.
        values = self.values(self.critics, observation, batch["action"])
        loss_of_critics = critic_loss(values, target)

        # 6. The actor: its actions move towards higher values and more entropy. The gradient passes through
        #    the critics, but does not reach their weights.
        values_of_policy = self.values_of_policy(self.critics, observation, action)
        loss_of_actor = soft_policy_loss(values_of_policy, log_prob, temperature)

        # 7. The temperature rises while the policy has less entropy than its target. Neither of the last two
        #    losses reaches what the other trains, so their sum trains each part by its own loss.
        loss_of_temperature = temperature_loss(temperature, log_prob, self.entropy_target)

        self.record(
            {
                "loss/critic": loss_of_critics,
                "loss/actor": loss_of_actor,
                "loss/temperature": loss_of_temperature,
                "loss/entropy": -log_prob,
                "loss/q_value": values,
                "loss/target": target,
                "schedule/temperature": temperature,
            }
        )
        return loss_of_critics + loss_of_actor + loss_of_temperature

    def policy(self, observation: Tensor) -> SquashedGaussian:
        """Return the distribution of actions in normalized observations ``(*batch, *shape)``."""
        mean, log_std = self.actor(observation)
        return SquashedGaussian(mean, bounded_log_std(log_std), self.action_center, self.action_scale)

    def explore(self, observation: Tensor) -> Tensor:
        """Draw actions of the policy."""
        return self.policy(observation).sample().clamp(self.action_low, self.action_high)

    def greedy(self, observation: Tensor) -> Tensor:
        """Return the actions at the policy's means."""
        return self.policy(observation).mode()

    def forward(self, observation: Tensor, action: Tensor | None = None) -> tuple[Tensor, ...]:
        """Map observations ``(*batch, *shape)`` and actions ``(*batch, dim)`` to all outputs.

        Without actions, the critics value those of the policy without noise.

        Returns:
            The actor's means and log standard deviations, as its heads give them, ``(*batch, dim)`` each, and
            each critic's values of the given actions, ``(*batch,)``.
        """
        observation = self.normalize(observation)
        action = self.greedy(observation) if action is None else action
        return *self.actor(observation), *self.each_value(self.critics, observation, action)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of actor, critics and temperature; the latter is no weight and never decays."""
        temperature = parameter_group(self.temperature, self.temperature_learning_rate)
        return [*super().parameter_groups(), {**temperature, "weight_decay": 0.0}]
