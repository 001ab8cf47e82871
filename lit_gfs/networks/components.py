"""Normalizations and activations by their names in configurations."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError, nearest

Norm = Literal["layer", "rms", "none"]
"""Normalization over features: LayerNorm, RMSNorm, or nothing."""

Activation = Literal["relu", "leaky_relu", "tanh", "elu", "gelu", "silu", "crelu", "fourier"]
"""Activation function; `CReLU` and `FourierFeatures` return two features for each unit."""

DEFAULT_SLOPE = 0.01
"""Slope of a leaky ReLU below 0, as in PyTorch."""


class CReLU(nn.Module):
    """Concatenated ReLU (Shang et al. 2016): the positive and the negative part of each unit.

    One of the two always passes on a gradient, so no unit is dead. In continual deep RL it keeps
    networks trainable (Abbas et al. 2023, arXiv 2303.07507).
    """

    def forward(self, units: Tensor) -> Tensor:
        """Map ``(*batch, units)`` to ``(*batch, 2 * units)``."""
        return torch.relu(torch.cat([units, -units], dim=-1))


class FourierFeatures(nn.Module):
    """Deep Fourier features (Lewandowski et al. 2024, arXiv 2410.20634): the sine and cosine of each unit.

    Where one of them is flat, the other is nearly linear, so each unit always passes on a gradient.
    """

    def forward(self, units: Tensor) -> Tensor:
        """Map ``(*batch, units)`` to ``(*batch, 2 * units)``."""
        return torch.cat([units.sin(), units.cos()], dim=-1)


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "crelu": CReLU,
    "fourier": FourierFeatures,
}


def features_per_unit(activation: Activation) -> int:
    """Return how many features an activation makes of each unit."""
    return 2 if activation in ("crelu", "fourier") else 1


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
    activations too. It also suits `CReLU` and `FourierFeatures`, whose two features of a unit share its mean
    square, or 1.

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
