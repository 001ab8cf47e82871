"""Normalizations and activations by their names in configurations."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from torch import nn

from lit_gfs.errors import UserError, nearest

Norm = Literal["layer", "rms", "none"]
"""Normalization over features: LayerNorm, RMSNorm, or nothing."""

Activation = Literal["relu", "leaky_relu", "tanh", "elu", "gelu", "silu"]

DEFAULT_SLOPE = 0.01
"""Slope of a leaky ReLU below 0, as in PyTorch."""

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def make_norm(norm: Norm, features: int) -> nn.Module:
    """Build a normalization over ``features`` features; ``none`` is the identity."""
    if norm == "layer":
        return nn.LayerNorm(features)
    if norm == "rms":
        return nn.RMSNorm(features)
    return nn.Identity()


def make_activation(activation: Activation, negative_slope: float = DEFAULT_SLOPE) -> nn.Module:
    """Build an activation function, as a separate module for each use so that hooks can distinguish them.

    Args:
        activation: Its name.
        negative_slope: Slope of a leaky ReLU below 0; no other activation has one.
    """
    if activation == "leaky_relu":
        return nn.LeakyReLU(negative_slope)
    return _ACTIVATIONS[activation]()


def activation_gain(activation: Activation, negative_slope: float = DEFAULT_SLOPE) -> float:
    """Return the gain of an orthogonal layer that keeps the scale of signals in front of an activation.

    It is sqrt(2) in front of a ReLU, which halves the mean square, and sqrt(2 / (1 + s^2)) in front of a
    leaky ReLU with the slope s (He et al. 2015, arXiv 1502.01852). Deep-RL networks use sqrt(2) for all other
    activations too.

    Args:
        activation: Its name.
        negative_slope: Slope of a leaky ReLU below 0.
    """
    return math.sqrt(2 / (1 + negative_slope**2)) if activation == "leaky_relu" else math.sqrt(2)


def require_slope(owner: str, negative_slope: float) -> None:
    """Check a slope below 0: from 0, a ReLU, to 1, a linear map.

    Args:
        owner: Name of the class with the argument.
        negative_slope: The user's value.

    Raises:
        UserError: If the slope is out of range.
    """
    if not 0 <= negative_slope <= 1:
        raise UserError(f"{owner} has negative_slope {negative_slope}; expected a number from 0 to 1")


def require_choice(owner: str, argument: str, value: str, literal: Any) -> None:
    """Check an argument that takes one of a few names.

    Args:
        owner: Name of the class with the argument.
        argument: Name of the argument.
        value: The user's value.
        literal: The ``Literal`` type of the valid choices.

    Raises:
        UserError: If the value is not a valid choice.
    """
    choices = get_args(literal)
    if value not in choices:
        raise UserError(
            f"{owner} has no {argument} {value!r}; expected one of {', '.join(choices)}"
            f"{nearest(str(value), choices)}"
        )
