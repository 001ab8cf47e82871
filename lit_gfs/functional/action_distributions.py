"""Action distributions of policies, built from the outputs of the policy's head.

Sampling does not synchronize with the device. `torch.multinomial` does, because it checks the probabilities.
The draws are the same as those of `torch.multinomial` and `torch.normal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gfs.functional.losses import (
    categorical_entropy,
    categorical_log_prob,
    gaussian_entropy,
    gaussian_log_prob,
)

_MASKED_LOGIT = -1e9
"""Logit of a choice that a part of an action does not have. Its probability is 0 in float32, and its
log-probability is finite."""


class ActionDistribution(Protocol):
    """A distribution of actions for each observation of a batch ``(*batch,)``."""

    def sample(self) -> Tensor:
        """Draw one action per observation, without gradient."""

    def mode(self) -> Tensor:
        """Return the most probable actions."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probabilities or log-densities of actions, ``(*batch,)``."""

    def entropy(self) -> Tensor:
        """Return the entropies in nats, ``(*batch,)``."""


@dataclass(frozen=True)
class Categorical:
    """A categorical distribution over discrete actions ``(*batch,)``.

    Args:
        logits: Unnormalized log-probabilities, ``(*batch, num_actions)``.
    """

    logits: Tensor

    def sample(self) -> Tensor:
        """Draw action indices ``(*batch,)``."""
        # Exponential race: if each action waits for an exponential time at a rate equal to its probability,
        # the probability to come first is the action's probability.
        probability = self.logits.detach().softmax(-1)
        return (probability / torch.empty_like(probability).exponential_()).argmax(-1)

    def mode(self) -> Tensor:
        """Return the indices of the most probable actions."""
        return self.logits.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probabilities ``(*batch,)`` of indices ``(*batch,)``."""
        return categorical_log_prob(self.logits, action)

    def entropy(self) -> Tensor:
        """Return the entropies ``(*batch,)``."""
        return categorical_entropy(self.logits)


class MultiCategorical:
    """Several independent categorical choices ``(*batch, parts)``; a binary part has two choices.

    Args:
        logits: Unnormalized log-probabilities of all choices, part after part, ``(*batch, sum(choices))``.
        choices: Number of choices of each part.
    """

    def __init__(self, logits: Tensor, choices: Sequence[int]) -> None:
        self.parts = Categorical(logits_by_part(logits, choices))

    def sample(self) -> Tensor:
        """Draw indices ``(*batch, parts)``."""
        return self.parts.sample()

    def mode(self) -> Tensor:
        """Return the most probable indices ``(*batch, parts)``."""
        return self.parts.mode()

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probabilities ``(*batch,)`` of indices ``(*batch, parts)``."""
        return self.parts.log_prob(action).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropies ``(*batch,)``."""
        return self.parts.entropy().sum(-1)


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian with independent dimensions over unbounded continuous actions ``(*batch, dim)``.

    Args:
        mean: Means, ``(*batch, dim)``.
        log_std: Logarithms of the standard deviations, ``(dim,)``.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self) -> Tensor:
        """Draw actions ``(*batch, dim)``."""
        mean = self.mean.detach()
        return torch.randn_like(mean) * self.log_std.detach().exp() + mean

    def mode(self) -> Tensor:
        """Return the means."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-densities ``(*batch,)`` of actions ``(*batch, dim)``."""
        return gaussian_log_prob(self.mean, self.log_std, action)

    def entropy(self) -> Tensor:
        """Return the entropies ``(*batch,)``."""
        return gaussian_entropy(self.log_std.expand_as(self.mean))


def logits_by_part(logits: Tensor, choices: Sequence[int]) -> Tensor:
    """Split logits into one row for each part of an action, padded to the same length.

    Args:
        logits: Logits of all choices, part after part, ``(*batch, sum(choices))``.
        choices: Number of choices of each part.

    Returns:
        Logits ``(*batch, parts, max(choices))``; padding has probability 0.
    """
    most = max(choices)
    if min(choices) == most:
        return logits.unflatten(-1, (len(choices), most))
    rows = logits.split(list(choices), -1)
    return torch.stack([F.pad(row, (0, most - row.shape[-1]), value=_MASKED_LOGIT) for row in rows], -2)
