"""Orthogonal initialization (Saxe et al. 2014), the usual initialization of deep-RL networks."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def orthogonal_(module: ModuleT, gain: float = math.sqrt(2)) -> ModuleT:
    """Make the weights of all linear and convolutional layers orthogonal, and their biases zero.

    A convolution's weight is orthogonal as a matrix ``(out_channels, in_channels * kernel positions)``.
    Other layers do not change.

    Args:
        module: Any module; it is changed in place.
        gain: Singular value of every weight; sqrt(2) keeps the scale of signals in ReLU layers.

    Returns:
        The same module.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module
