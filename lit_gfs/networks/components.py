"""Normalizations and activations by their names in configurations."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn

from lit_gfs.errors import UserError, nearest

Norm = Literal["layer", "rms", "none"]
"""Normalization over features: LayerNorm, RMSNorm, or nothing."""

Activation = Literal["relu", "tanh", "elu", "gelu", "silu"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
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


def make_activation(activation: Activation) -> nn.Module:
    """Build an activation function, as a separate module for each use so that hooks can distinguish them."""
    return _ACTIVATIONS[activation]()


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
