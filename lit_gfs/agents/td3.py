"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv 1802.09477), and DDPG.

The policy is a function from states to actions, explored by noise. It climbs the values of a critic that
learns from replayed transitions. Three measures keep it from climbing the critic's errors: the smaller of two
critics' values is learned from; the target policy's actions carry noise, so that similar actions have similar
values; and the policy learns in every second step only, from a critic that has had more time.

With ``critics=1, policy_delay=1, target_noise=0`` it is deep deterministic policy gradient (Lillicrap et al.
2015, arXiv 1509.02971).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from lit_gfs.agents.off_policy_actor_critic import OffPolicyActorCritic
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError, require_between
from lit_gfs.functional.actor_critic import critic_loss, deterministic_policy_loss, smallest_value
from lit_gfs.functional.exploration import noisy_action
from lit_gfs.functional.returns import n_step_return, td_target
from lit_gfs.networks import (
    EncoderFactory,
    Initialization,
    LinearHead,
    Network,
    TrunkFactory,
    move_towards_,
)


class DeterministicActor(Network):
    """Actions before tanh, on an encoder and a trunk."""

    def __init__(
        self,
        spec: EnvSpec,
        encoder: EncoderFactory | None,
        trunk: TrunkFactory,
        initialization: Initialization,
    ) -> None:
        super().__init__(spec.observation_shape, encoder, trunk, initialization)
        self.head = LinearHead(self.out_features, spec.action_dim, gain=0.01)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to actions before tanh, ``(*batch, dim)``, in float32."""
        return self.head(self.features(observation)).float()


class TD3(OffPolicyActorCritic):
    """Twin delayed deep deterministic policy gradient; DDPG with one critic, no delay and no target noise.

    Noise is in halves of the distance of the bounds: the same number suits actions of any scale.

    Args:
        env_spec: The environment's spaces; the command line fills it in from the datamodule.
        policy_delay: Optimizer steps per step of the policy and of the target networks. In the others the
            actor has no gradient, and the optimizer leaves it alone.
        exploration_noise: Standard deviation of the noise on actions that collect experience.
        target_noise: Standard deviation of the noise on the target policy's actions.
        target_noise_clip: Largest absolute noise on the target policy's actions.
        options: Critics, target networks and random actions, see `OffPolicyActorCritic`; rewards and
            discount, see `Agent`; networks and optimizer, see `Learner`.

    Raises:
        UserError: If actions are not continuous or have no bounds, or a number is out of range.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        *,
        policy_delay: int = 2,
        exploration_noise: float = 0.1,
        target_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(env_spec, **options)
        require_between(1, math.inf, policy_delay=policy_delay)
        require_between(
            0,
            math.inf,
            exploration_noise=exploration_noise,
            target_noise=target_noise,
            target_noise_clip=target_noise_clip,
        )
        self.actor: DeterministicActor = DeterministicActor(
            env_spec, self.build_encoder, self.build_trunk, self.initialization
        )
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.policy_delay = policy_delay
        if policy_delay > 1:
            self.decides_on_host = "policy_delay decides in each step whether the policy learns"
        self.exploration_noise = exploration_noise
        self.target_noise = target_noise
        self.target_noise_clip = target_noise_clip

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """Return the loss of a batch of transitions, ``(batch,)``."""
        next_ = batch["next"]
        observation, next_observation = (self.normalize(each["observation"]) for each in (batch, next_))

        with torch.no_grad():
            # 1. The rewards up to the next state as the learner sees them. A lost life may count as the end
            #    of the episode.
            reward, terminated, discount = n_step_return(
                next_, self.gamma, self.reward_scale, self.clip_reward, self.end_of_life_is_terminal
            )
            # 2. The target policy's action in the next state, with noise.
            next_action = noisy_action(
                self.act(self.target_actor, next_observation),
                self.action_low,
                self.action_high,
                self.target_noise,
                self.target_noise_clip,
            )
            # 3. Its value: the smallest of the target critics' values.
            next_value = smallest_value(self.values(self.target_critics, next_observation, next_action))
            # 4. The target r + gamma v(s'). A terminated episode has no next state; a truncated one does.
            target = td_target(reward, next_value, terminated, discount)

        # 5. The critics: their values of the actions that were taken move towards the target.
        values = self.values(self.critics, observation, batch["action"])
        loss = loss_of_critics = critic_loss(values, target)
        recorded = {"loss/critic": loss_of_critics, "loss/q_value": values, "loss/target": target}

        # 6. The actor, in every `policy_delay`-th step: its actions move towards higher values. The gradient
        #    passes through the first critic, but does not reach its weights.
        if self.policy_is_due:
            action = self.act(self.actor, observation)
            value = self.values_of_policy(self.critics[:1], observation, action)[0]
            recorded["loss/actor"] = loss_of_actor = deterministic_policy_loss(value)
            loss = loss_of_critics + loss_of_actor

        self.record(recorded)
        return loss

    @property
    def policy_is_due(self) -> bool:
        """Whether the policy learns, and the target networks move, in this optimizer step."""
        # Accumulated batches belong to one optimizer step, which counts once it is over. A probed loss is the
        # loss of all parameters.
        return self.is_probed or (self.trainer.global_step + 1) % self.policy_delay == 0

    def move_targets(self, share: float) -> None:
        """Move the target networks of critics and actor towards the weights by a share."""
        super().move_targets(share)
        move_towards_(self.target_actor, self.actor, share)

    def on_train_start(self) -> None:
        """Refuse processes that would wait for gradients of the actor in steps without them.

        Raises:
            UserError: If the strategy expects a gradient of every parameter in each step.
        """
        super().on_train_start()
        options = getattr(self.trainer.strategy, "_ddp_kwargs", None)
        if options is not None and self.policy_delay > 1 and not options.get("find_unused_parameters"):
            raise UserError(
                f"policy_delay is {self.policy_delay}, and trainer.strategy expects gradients of all "
                "parameters in each step; expected ddp_find_unused_parameters_true, or policy_delay 1"
            )

    def act(self, actor: torch.nn.Module, observation: Tensor) -> Tensor:
        """Return an actor's actions between the bounds, ``(*batch, dim)``."""
        return self.action_center + self.action_scale * actor(observation).tanh()

    def explore(self, observation: Tensor) -> Tensor:
        """Add noise to the policy's actions."""
        action = self.act(self.actor, observation)
        return noisy_action(action, self.action_low, self.action_high, self.exploration_noise)

    def greedy(self, observation: Tensor) -> Tensor:
        """Return the policy's actions."""
        return self.act(self.actor, observation)

    def forward(self, observation: Tensor, action: Tensor | None = None) -> tuple[Tensor, ...]:
        """Map observations ``(*batch, *shape)`` and actions ``(*batch, dim)`` to all outputs.

        Without actions, the critics value those of the policy without noise.

        Returns:
            The policy's actions before tanh, ``(*batch, dim)``, and each critic's values of the given
            actions, ``(*batch,)``.
        """
        observation = self.normalize(observation)
        action = self.greedy(observation) if action is None else action
        return self.actor(observation), *self.each_value(self.critics, observation, action)
