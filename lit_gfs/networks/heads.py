"""Heads: the last linear layer, which maps features to outputs."""

from __future__ import annotations

from torch import nn

from lit_gfs.errors import UserError


class LinearHead(nn.Linear):
    """A linear layer that starts with an orthogonal weight of a given gain and a zero bias.

    A small gain makes the initial policy almost uniform (0.01 in PPO); the gain of values is 1
    (Andrychowicz et al. 2021, "What matters in on-policy reinforcement learning?").

    Args:
        in_features: Number of input features.
        out_features: Number of outputs.
        gain: Singular value of the initial weight.

    Raises:
        UserError: If the gain is negative.
    """

    def __init__(self, in_features: int, out_features: int, gain: float = 1.0) -> None:
        super().__init__(in_features, out_features)
        if gain < 0:
            raise UserError(f"a head's gain must not be negative, got {gain}")
        self.gain = gain
        nn.init.orthogonal_(self.weight, gain)
        nn.init.zeros_(self.bias)
