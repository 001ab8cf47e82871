"""Batches of transitions with continuous actions, without an environment."""

from __future__ import annotations

import torch
from tensordict import TensorDict

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
