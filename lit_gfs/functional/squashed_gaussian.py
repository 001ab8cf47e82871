"""The policy of soft actor-critic: a Gaussian that tanh squashes into the bounds of the actions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gfs.functional.losses import gaussian_log_prob

SMALLEST_LOG_STD, LARGEST_LOG_STD = -5.0, 2.0
"""Range of the logarithm of the standard deviation, before squashing."""


@dataclass(frozen=True)
class SquashedGaussian:
    """The distribution of ``center + scale * tanh(u)``, where u is Gaussian with independent dimensions.

    Actions lie between the bounds ``center - scale`` and ``center + scale``. Densities are those of the
    actions themselves, in their units (Haarnoja et al. 2018, arXiv 1812.05905, appendix C):
    log p(a) = log N(u) - sum log(scale (1 - tanh(u)^2)).

    Args:
        mean: Means of u, ``(*batch, dim)``.
        log_std: Logarithms of the standard deviations of u, ``(*batch, dim)``.
        center: Middle of the bounds, ``(dim,)``.
        scale: Half the distance of the bounds, positive, ``(dim,)``.
    """

    mean: Tensor
    log_std: Tensor
    center: Tensor
    scale: Tensor

    def sample(self) -> Tensor:
        """Draw one action per observation, ``(*batch, dim)``, with gradients of mean and deviation."""
        return self._action(self._unsquashed())

    def sample_with_log_prob(self) -> tuple[Tensor, Tensor]:
        """Draw actions ``(*batch, dim)`` with their log-densities ``(*batch,)``, both with gradients.

        The density comes from u, so it is exact where tanh is 1 in floating point.
        """
        unsquashed = self._unsquashed()
        return self._action(unsquashed), self._log_prob(unsquashed)

    def mode(self) -> Tensor:
        """Return the actions at the means of u, ``(*batch, dim)``."""
        return self._action(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-densities ``(*batch,)`` of actions ``(*batch, dim)`` between the bounds."""
        return self._log_prob(torch.atanh((action - self.center) / self.scale))

    def _unsquashed(self) -> Tensor:
        return self.mean + self.log_std.exp() * torch.randn_like(self.mean)

    def _action(self, unsquashed: Tensor) -> Tensor:
        return self.center + self.scale * unsquashed.tanh()

    def _log_prob(self, unsquashed: Tensor) -> Tensor:
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which does not round to log 0 for large u.
        log_slope = 2 * (math.log(2) - unsquashed - F.softplus(-2 * unsquashed)) + self.scale.log()
        return gaussian_log_prob(self.mean, self.log_std, unsquashed) - log_slope.sum(-1)


def bounded_log_std(
    output: Tensor, smallest: float = SMALLEST_LOG_STD, largest: float = LARGEST_LOG_STD
) -> Tensor:
    """Map a network's output smoothly into the range of log standard deviations.

    Unlike a clipped output, one at the end of the range keeps a gradient.

    Args:
        output: Any numbers, ``(*batch, dim)``; 0 is the middle of the range.
        smallest: Lower end of the range.
        largest: Upper end of the range.

    Returns:
        Values of the same shape.
    """
    return smallest + (largest - smallest) * (output.tanh() + 1) / 2
