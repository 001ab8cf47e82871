"""Batches of transitions with continuous actions, without an environment."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from lit_gfs.agents.off_policy_actor_critic import OffPolicyActorCritic
from lit_gfs.envs import EnvSpec


def continuous_batch(spec: EnvSpec, size: int = 16, seed: int = 0) -> TensorDict:
    """Draw transitions ``(size,)`` between the bounds of the actions; every fourth step terminates.

    Every fourth of the others is truncated.
    """
    assert spec.action_low is not None
    assert spec.action_high is not None
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
    index = torch.arange(size).unsqueeze(-1)
    terminated, truncated = index % 4 == 0, index % 4 == 1
    next_ = {
        "observation": torch.randn(size, *spec.observation_shape, generator=generator),
        "reward": torch.randn(size, 1, generator=generator),
        "terminated": terminated,
        "truncated": truncated,
        "done": terminated | truncated,
    }
    return TensorDict(
        {
            "observation": torch.randn(size, *spec.observation_shape, generator=generator),
            "action": low + (high - low) * torch.rand(size, len(low), generator=generator),
            "next": TensorDict(next_, [size]),
        },
        [size],
    )


def assert_standardizes(agent: OffPolicyActorCritic, plain: OffPolicyActorCritic, batch: TensorDict) -> None:
    """Check that an agent acts and learns as its twin does on observations that are standardized before.

    Args:
        agent: It has statistics of observations, and none in them yet.
        plain: The same weights, without statistics.
        batch: Transitions, as from `continuous_batch`.
    """
    assert agent.observation_norm is not None
    agent.observation_norm.observe(7 + 3 * torch.randn(50, *agent.env_spec.observation_shape))
    agent.observation_norm.commit()
    standardized = batch.clone()
    for each in (standardized, standardized["next"]):
        each["observation"] = agent.observation_norm(each["observation"])

    def outcomes(agent: OffPolicyActorCritic, batch: TensorDict) -> list[Tensor]:
        torch.manual_seed(3)
        explored = agent.collection_policy().function(batch["observation"], 0.0)
        greedy = agent.eval_policy().function(batch["observation"])
        return [agent.loss(batch), explored["action"], greedy["action"]]

    torch.testing.assert_close(outcomes(agent, batch), outcomes(plain, standardized))
