"""Parallelised Q-network (Gallici et al. 2024, arXiv 2407.04811): Q-learning from fresh rollouts."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.optim import RAdam

from lit_gfs.agents.learner import OptimizerFactory
from lit_gfs.agents.q_learning import QLearningAgent
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import require_between
from lit_gfs.functional.exploration import epsilon_greedy
from lit_gfs.functional.losses import max_q_value
from lit_gfs.functional.returns import lambda_return, next_values
from lit_gfs.networks import EncoderFactory, Initialization, PlainTrunk, TrunkFactory


class PQN(QLearningAgent):
    """Q-learning without replay and without a target network.

    Many environments stepped together take the place of replay, normalization inside of the network that of
    the target network. Targets are lambda-returns on the values of the best actions, computed once for each
    rollout by the network that collected it.

    Args:
        env_spec: The environment's spaces; the command line fills it in.
        encoder: Builds the encoder; ``null`` leaves the choice to `lit_gfs.networks.default_encoder`.
        trunk: Builds the trunk; it should normalize, as the default does.
        optimizer: Builds the optimizer; the default is RAdam with PyTorch's own settings (rate 1e-3), not
            those of the shipped configurations.
        initialization: ``orthogonal`` (gain sqrt(2)) or ``torch`` (PyTorch's defaults).
        gamma: Discount per environment step.
        lambda_: Weight of longer returns, from 0 (one step) to 1 (Monte Carlo).
        loss: ``mse`` or ``huber`` (threshold 1) on the temporal-difference error.
        epsilon_start: Probability of a random action at step 0.
        epsilon_end: Probability of a random action once decayed.
        epsilon_decay_steps: Environment steps over which epsilon falls linearly, a tenth of the run in the
            paper; it moves from rollout to rollout.
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

    needs_only_final_observations: ClassVar[bool] = True

    def __init__(
        self,
        env_spec: EnvSpec,
        encoder: EncoderFactory | None = None,
        trunk: TrunkFactory = lambda in_features: PlainTrunk(in_features, norm="layer"),
        optimizer: OptimizerFactory = RAdam,
        initialization: Initialization = "orthogonal",
        gamma: float = 0.99,
        lambda_: float = 0.65,
        loss: Literal["mse", "huber"] = "mse",
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.001,
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
            clip_reward=clip_reward,
            end_of_life_is_terminal=end_of_life_is_terminal,
            compile=compile,
            reward_scale=reward_scale,
        )
        require_between(0, 1, lambda_=lambda_)
        self.lambda_ = lambda_
        self.rollout_exhausted = False  # every minibatch is learned from

    def collection_policy(self) -> Policy:
        """Act epsilon-greedily; keep the state's value, which the target of the step before needs."""
        return Policy(self._explore, ["action", "value"])

    def _explore(self, observation: Tensor) -> dict[str, Tensor]:
        q_values = self.q_network(observation)
        return {"action": epsilon_greedy(q_values, self.epsilon), "value": max_q_value(q_values)}

    def on_collection_start(self) -> None:
        """Say that the targets are about to change."""
        self.announce_objective_shift("rollout")

    @torch.no_grad()
    def process_rollout(self, rollout: TensorDictBase) -> TensorDict:
        """Compute targets once for a rollout ``(num_envs, T)``.

        Truncated episodes bootstrap from their true final observation, terminated ones do not.
        ``("next", "observation")`` may be a `lit_gfs.collectors.final_observations.FinalObservations`.

        Returns:
            What minibatches are drawn from, ``(num_envs * T,)``, on the agent's device.
        """
        rollout = rollout.to(self.device)
        following = rollout["next"]
        reward, done, terminated = self.outcome(following)
        next_value = next_values(
            rollout["value"],
            following["observation"],
            done,
            terminated,
            lambda observation: max_q_value(self.q_network(observation)),
        )
        transitions = rollout.select("observation", "action")
        transitions["target"] = lambda_return(reward, next_value, done, terminated, self.gamma, self.lambda_)
        return transitions.flatten(0, 1)

    def batch_target(self, batch: TensorDictBase) -> Tensor:
        """Return the lambda-returns that were computed for the rollout, ``(batch,)``."""
        return batch["target"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and, where asked for, the schedule over environment steps."""
        optimizer = self.make_optimizer(self.build_optimizer, self.q_network.parameters())
        return self.annealed(optimizer, "epoch") if self.anneal_learning_rate else optimizer
