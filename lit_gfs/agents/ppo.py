"""Proximal policy optimization (Schulman et al. 2017), for all kinds of actions.

The agent collects a rollout with its policy and values the states as it acts in them. Generalized advantage
estimation then tells how much better each action was than the policy's average. A few passes of minibatches
make good actions more probable, but the clipped loss gains nothing once a probability has moved further than
`clip` from that of the policy that acted.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from lit_gfs.agents.agent import Agent, require_normalizable
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError, require_between, require_one_of
from lit_gfs.functional.action_distributions import (
    ActionDistribution,
    Categorical,
    Gaussian,
    MultiCategorical,
)
from lit_gfs.functional.losses import (
    clipped_policy_loss,
    explained_variance,
    normalize_advantage,
    value_loss,
)
from lit_gfs.functional.returns import generalized_advantage, learner_reward, next_values
from lit_gfs.functional.value_distributions import ValueDistribution
from lit_gfs.networks import (
    EncoderFactory,
    Initialization,
    LinearHead,
    Network,
    RunningNorm,
    TrunkFactory,
    numbered_layers,
)
from lit_gfs.optim.factory import make_optimizer
from lit_gfs.utils.transfers import send


def policy_outputs(spec: EnvSpec) -> int:
    """Return how many numbers a policy gives for one observation: logits, or means of continuous actions."""
    if spec.action_choices is not None:
        return sum(spec.action_choices)
    return spec.action_dim if spec.num_actions is None else spec.num_actions


class ActorCritic(nn.Module):
    """Policy and value, on one network or on two of the same shape.

    The policy head gives logits ``(*batch, num_actions)``, those of several choices part after part, or
    Gaussian means ``(*batch, action_dim)`` whose standard deviation does not depend on the state. The value
    head gives outputs ``(*batch,)`` or ``(*batch, size)`` that state the value of the state.
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoder: EncoderFactory | None,
        trunk: TrunkFactory,
        initialization: Initialization,
        shared: bool,
        normalize_observation: bool,
        values: ValueDistribution,
    ) -> None:
        super().__init__()
        self.values = values
        self.observation_norm = RunningNorm(spec.observation_shape) if normalize_observation else None
        shape = spec.observation_shape
        self.policy_network = Network(shape, encoder, trunk, initialization)
        self.value_network = None if shared else Network(shape, encoder, trunk, initialization)
        features = self.policy_network.out_features
        self.policy_head = LinearHead(features, policy_outputs(spec), gain=0.01)
        self.value_head = LinearHead(features, values.size, gain=1.0)
        self.log_std = None if spec.action_low is None else nn.Parameter(torch.zeros(spec.action_dim))

    def normalize(self, observation: Tensor) -> Tensor:
        """Normalize observations with the statistics committed so far."""
        return observation if self.observation_norm is None else self.observation_norm(observation)

    def policy(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to logits or means, float32."""
        return self.policy_head(self.policy_network(self.normalize(observation))).float()

    def value(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to state values ``(*batch,)``, float32."""
        network = self.value_network or self.policy_network
        return self.values.mean(self._value_outputs(network(self.normalize(observation))))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the policy head and of the value head, ``(*batch, n)`` each.

        The value's are ``(*batch,)`` where one output is the value.
        """
        observation = self.normalize(observation)
        features = self.policy_network(observation)
        value_features = features if self.value_network is None else self.value_network(observation)
        return self.policy_head(features).float(), self._value_outputs(value_features)

    def _value_outputs(self, features: Tensor) -> Tensor:
        outputs = self.value_head(features).float()
        return outputs.squeeze(-1) if self.values.size == 1 else outputs


class PPO(Agent):
    """Proximal policy optimization.

    Several discrete choices at once (MultiDiscrete, MultiBinary) are independent categoricals.

    Continuous actions: the log-probability is that of the unclipped Gaussian sample; only the environment
    sees it clipped to [-1, 1] and scaled to its bounds. In dimensions without two finite bounds it sees the
    sample itself, clipped to the bound that there is.

    Args:
        env_spec: The environment's spaces; the command line fills it in from the datamodule.
        shared_network: Whether policy and value share encoder and trunk; otherwise each has its own.
        lambda_: Decay of generalized advantage estimation.
        clip: Half-width of the trusted interval around a probability ratio of 1.
        value_loss: ``mse``, or the cross-entropy of a distribution over ``atoms`` atoms whose mean is the
            value: to a Gaussian around the target (``hl_gauss``), or to its two neighbouring atoms
            (``c51``), see `lit_gfs.functional.value_distributions`.
        clip_value: Half-width to which a value may move per rollout; ``null`` does not clip. Only with
            ``mse``.
        value_coefficient: Weight of the value loss (``mse`` carries a factor 1/2).
        entropy_coefficient: Weight of the entropy bonus.
        normalize_advantage: Whether advantages are standardized in each minibatch.
        normalize_observation: Whether observations (vectors) are standardized by running statistics, which
            are part of the model: saved, and frozen in evaluation.
        anneal_learning_rate: Whether the learning rate falls linearly to 0 over the run.
        target_kl: Approximate KL divergence from the collecting policy after which the rest of a rollout's
            minibatches is skipped; ``null`` never stops. With a number, the host waits for the device in
            every update, because the divergence decides whether there is another one.
        sample_in_evaluation: Whether evaluation samples from the policy instead of taking its mode; usual on
            Atari, where a mode that never presses FIRE again waits for the time limit.
        options: Rewards and discount, see `Agent`; networks and optimizer, see `Learner`.

    Raises:
        UserError: If a number is out of range, values that are distributions are to be clipped, or images
            are to be standardized by running statistics.
    """

    needs_only_final_observations: ClassVar[bool] = True

    def __init__(
        self,
        env_spec: EnvSpec,
        *,
        shared_network: bool = False,
        lambda_: float = 0.95,
        clip: float = 0.2,
        value_loss: Literal["mse", "c51", "hl_gauss"] = "mse",
        clip_value: float | None = None,
        value_coefficient: float = 0.5,
        entropy_coefficient: float = 0.0,
        normalize_advantage: bool = True,
        normalize_observation: bool = False,
        anneal_learning_rate: bool = True,
        target_kl: float | None = None,
        sample_in_evaluation: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(env_spec, anneal_learning_rate=anneal_learning_rate, **options)
        require_one_of(("mse", "c51", "hl_gauss"), value_loss=value_loss)
        require_between(0, 1, lambda_=lambda_)
        require_between(0, math.inf, clip=clip, clip_value=clip_value, target_kl=target_kl)
        require_between(
            0, math.inf, value_coefficient=value_coefficient, entropy_coefficient=entropy_coefficient
        )
        require_normalizable(env_spec, normalize_observation)
        self.values = self.value_distribution(value_loss)
        """How the network states values."""
        if clip_value is not None and self.values.size > 1:
            raise UserError(
                f"clip_value is {clip_value:g}, but with value_loss {value_loss} a value is the mean of a "
                "distribution; expected clip_value null"
            )
        self.actor_critic = ActorCritic(
            env_spec,
            self.build_encoder,
            self.build_trunk,
            self.initialization,
            shared_network,
            normalize_observation,
            self.values,
        )
        self.lambda_ = lambda_
        self.clip = clip
        self.clip_value = clip_value
        self.value_coefficient = value_coefficient
        self.entropy_coefficient = entropy_coefficient
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        if target_kl is not None:
            self.decides_on_host = "target_kl needs the result of each step"
        self.sample_in_evaluation = sample_in_evaluation
        self.rollout_exhausted = False
        if env_spec.action_low is not None:
            self.register_action_bounds()

    @property
    def trunk(self) -> nn.Module:
        """The policy's trunk, which may be the value's too."""
        return self.actor_critic.policy_network.trunk

    @property
    def policy_head(self) -> nn.Module:
        """The layer whose outputs are logits, or means of continuous actions."""
        return self.actor_critic.policy_head

    def policy_features(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to the output of the policy's trunk."""
        return self.actor_critic.policy_network(self.actor_critic.normalize(observation))

    def named_layers(self) -> dict[str, nn.Module]:
        """The policy's layers by the names that other agents give theirs, then those of the value.

        Layers of the value alone are ``value.trunk.layer_01``, ``value.head`` ...; the policy's free standard
        deviation is a layer, ``log_std``.
        """
        layers = {self._layer_name(name): layer for name, layer in numbered_layers(self.actor_critic).items()}
        return dict(sorted(layers.items(), key=lambda named: named[0].startswith("value.")))

    def _layer_name(self, name: str) -> str:
        for prefix, shown in (
            ("policy_network.", ""),
            ("policy_head", "head"),
            ("value_network.", "value."),
            ("value_head", "value.head"),
            # It belongs to the whole, which owns nothing else directly.
            (type(self.actor_critic).__name__, "log_std"),
        ):
            if name.startswith(prefix):
                return shown + name.removeprefix(prefix)
        return name

    # -- acting ------------------------------------------------------------------------------------------

    def collection_policy(self) -> Policy:
        """Sample actions; keep what learning needs: the sample, its log-probability, the state's value."""
        return Policy(self._explore, ["action", "sample", "log_prob", "value"])

    def eval_policy(self) -> Policy:
        """Take the most probable action, or sample one where that was asked for."""

        def act(observation: Tensor) -> dict[str, Tensor]:
            actions = self.distribution(self.actor_critic.policy(observation))
            return {"action": self._to_env(actions.sample() if self.sample_in_evaluation else actions.mode())}

        return Policy(act, ["action"])

    def _explore(self, observation: Tensor) -> dict[str, Tensor]:
        output, value_outputs = self.actor_critic(observation)
        actions = self.distribution(output)
        sample = actions.sample()
        return {
            "action": self._to_env(sample),
            "sample": sample,
            "log_prob": actions.log_prob(sample),
            "value": self.values.mean(value_outputs),
        }

    def distribution(self, output: Tensor) -> ActionDistribution:
        """Return the distribution of actions that the policy head's output ``(*batch, n)`` stands for."""
        if self.env_spec.action_choices is not None:
            return MultiCategorical(output, self.env_spec.action_choices)
        if self.env_spec.is_discrete:
            return Categorical(output)
        assert self.actor_critic.log_std is not None
        return Gaussian(output, self.actor_critic.log_std)

    def _to_env(self, sample: Tensor) -> Tensor:
        """Return samples as the environment takes them: continuous ones scaled, and within its bounds."""
        if self.env_spec.action_low is None:
            return sample
        return (self.action_center + self.action_scale * sample).clamp(self.action_low, self.action_high)

    def on_collection_start(self) -> None:
        """Take in the observations of the rollout before: the statistics never move within a rollout."""
        self.rollout_exhausted = False
        self.announce_objective_shift("rollout")
        if self.actor_critic.observation_norm is not None:
            self.actor_critic.observation_norm.commit()

    # -- learning ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def process_rollout(self, rollout: TensorDictBase) -> TensorDict:
        """Compute advantages and value targets once for a rollout ``(num_envs, T)``.

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
        next_value = next_values(value, next_["observation"], done, terminated, self.actor_critic.value)
        # 3. How much better each action was than the policy's average, and the values' targets.
        reward, done, terminated = (send(part, self.device) for part in (reward, done, terminated))
        advantage, value_target = generalized_advantage(
            reward, value, next_value, done, terminated, self.gamma, self.lambda_
        )
        transitions = send(rollout.select("observation", "sample", "log_prob", "value"), self.device)
        # 4. The statistics of observations take these in before the next rollout, see `on_collection_start`.
        if self.actor_critic.observation_norm is not None:
            self.actor_critic.observation_norm.observe(transitions["observation"].flatten(0, 1))

        self.record({"loss/explained_variance": explained_variance(value, value_target)})
        transitions["advantage"], transitions["value_target"] = advantage, value_target
        return transitions.flatten(0, 1)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """Return the loss of a minibatch of `process_rollout`'s transitions, ``(batch,)``."""
        # 1. The policy and the values of today, in the states of the batch.
        output, value_outputs = self.actor_critic(batch["observation"])
        actions = self.distribution(output)

        # 2. The policy: actions become more probable by their advantage, within the trusted interval.
        advantage = batch["advantage"]
        if self.normalize_advantage:
            advantage = normalize_advantage(advantage)
        policy = clipped_policy_loss(
            actions.log_prob(batch["sample"]), batch["log_prob"], advantage, self.clip
        )
        # 3. The values move towards their targets.
        loss_of_values = self._value_loss(value_outputs, batch["value_target"], batch["value"])
        # 4. A bonus for entropy keeps the policy exploring.
        entropy = actions.entropy().mean()
        loss = policy.loss + self.value_coefficient * loss_of_values - self.entropy_coefficient * entropy

        # 5. A policy that has moved too far from the one that acted skips the rest of the rollout.
        if self.target_kl is not None and not self.is_probed:
            self.rollout_exhausted = self._is_beyond(self.target_kl, policy.approx_kl.detach())

        self.record(
            {
                "loss/policy": policy.loss,
                "loss/value": loss_of_values,
                "loss/entropy": entropy,
                "loss/approx_kl": policy.approx_kl,
                "loss/clip_fraction": policy.clip_fraction,
                **self.values.metrics(batch["value_target"]),
            }
        )
        return loss

    def _value_loss(self, outputs: Tensor, target: Tensor, old_value: Tensor) -> Tensor:
        """Return the loss ``()`` of the value head's outputs: a regression, or a classification."""
        if self.values.size == 1:
            return value_loss(outputs, target, old_value, self.clip_value)
        return self.values.losses(outputs, self.values.encoded(target)).mean()

    def _is_beyond(self, target_kl: float, approx_kl: Tensor) -> bool:
        """Compare the divergence ``()`` with its limit: the host waits for the device here."""
        # All ranks must agree, or they would wait for each other's gradients.
        return bool(self.trainer.strategy.reduce(approx_kl, reduce_op="mean") > target_kl)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Map observations ``(*batch, *shape)`` to logits or means, and values ``(*batch,)``."""
        output, value_outputs = self.actor_critic(observation)
        return output, self.values.mean(value_outputs)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and, where asked for, the schedule over environment steps."""
        optimizer = make_optimizer(self.build_optimizer, self.actor_critic.parameters())
        return self.annealed(optimizer, "epoch")

    def schedule_values(self) -> dict[str, float]:
        """Return the learning rate and, for continuous actions, the mean standard deviation."""
        values = super().schedule_values()
        if self.actor_critic.log_std is not None:
            values["schedule/action_std"] = float(self.actor_critic.log_std.detach().exp().mean())
        return values
