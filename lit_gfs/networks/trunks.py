"""Trunks: the stack of linear layers between encoder and head, with variable depth and width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError
from lit_gfs.networks.branch_factors import BranchFactor, make_branch_factor
from lit_gfs.networks.components import (
    DEFAULT_SLOPE,
    Activation,
    Norm,
    activation_gain,
    features_per_unit,
    make_activation,
    make_norm,
    require_choice,
    require_slope,
)
from lit_gfs.utils.memory import require_memory

LARGEST_DEPTH = 10_000
"""Upper limit of the depth: each layer costs time and memory beside its weights."""


class Trunk(nn.Module):
    """Base of the trunks: checks their common arguments.

    ``forward`` maps features ``(*batch, in_features)`` to ``(*batch, out_features)``. In every trunk
    ``depth`` is the number of linear layers on the longest path, so depths of different trunks are
    comparable.

    Args:
        in_features: Number of input features.
        depth: Number of linear layers.
        width: Number of features of each layer. `CReLU` and `FourierFeatures` make two of each unit, so
            layers have half as many units.
        norm: Normalization over features.
        activation: Activation function.
        negative_slope: Slope of ``leaky_relu`` below 0, from 0 to 1; other activations have none.

    Raises:
        UserError: If an argument is out of range, there is a slope without a leaky ReLU, or the trunk does
            not suit the activation.
    """

    smallest_depth = 1
    """Smallest depth of this kind of trunk."""

    allows_two_features_per_unit = False
    """Whether each activation follows a linear layer, which can have half as many units as features."""

    out_features: int
    """Number of output features."""

    gain: float = math.sqrt(2)
    """Gain of orthogonal layers in front of the activation."""

    def __init__(
        self,
        in_features: int,
        depth: int,
        width: int,
        norm: Norm,
        activation: Activation,
        negative_slope: float = DEFAULT_SLOPE,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if depth < self.smallest_depth:
            raise UserError(f"{name} needs depth >= {self.smallest_depth}, got {depth}")
        if depth > LARGEST_DEPTH:
            raise UserError(f"{name} has at most {LARGEST_DEPTH} layers, got depth {depth}")
        if width < 1:
            raise UserError(f"{name} needs width >= 1, got {width}")
        weights = width * (in_features + (depth - 1) * width) if depth else 0
        require_memory(f"weights of {name} with depth {depth} and width {width}", 4 * weights)
        require_choice(name, "norm", norm, Norm)
        require_choice(name, "activation", activation, Activation)
        require_slope(name, negative_slope)
        if activation != "leaky_relu" and negative_slope != DEFAULT_SLOPE:
            raise UserError(
                f"{name} has negative_slope {negative_slope}, but its activation is {activation}; expected "
                "activation leaky_relu"
            )
        count = features_per_unit(activation)
        if count > 1 and not self.allows_two_features_per_unit:
            raise UserError(
                f"{name} has the activation {activation}, which makes {count} features of each unit of a "
                "stream; expected PlainTrunk or DenseTrunk, or another activation"
            )
        if width % count:
            raise UserError(f"{name} with the activation {activation} needs an even width, got {width}")
        self.units = width // count
        """Number of units of a linear layer before an activation."""
        self.gain = activation_gain(activation, negative_slope)
        self.in_features = in_features
        self.out_features = width if depth else in_features
        self.depth = depth
        self.width = width


class PlainTrunk(Trunk):
    """A chain: ``depth`` times linear, normalization, activation.

    Args:
        in_features: Number of input features.
        depth: Number of linear layers; 0 is the identity.
        width: Number of features of each layer.
        norm: Normalization over the units of a layer, before each activation.
        activation: Activation function. ``crelu`` and ``fourier`` make two features of each unit, so layers
            have half as many units.
        negative_slope: Slope of ``leaky_relu`` below 0, from 0 to 1.

    Raises:
        UserError: If an argument is out of range.
    """

    smallest_depth = 0
    allows_two_features_per_unit = True

    def __init__(
        self,
        in_features: int,
        depth: int = 2,
        width: int = 64,
        norm: Norm = "none",
        activation: Activation = "relu",
        negative_slope: float = DEFAULT_SLOPE,
    ) -> None:
        super().__init__(in_features, depth, width, norm, activation, negative_slope)
        self.layers = nn.Sequential()
        for index in range(depth):
            self.layers.append(nn.Linear(width if index else in_features, self.units))
            self.layers.append(make_norm(norm, self.units))
            self.layers.append(make_activation(activation, negative_slope))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        return self.layers(features)


class ResidualBranch(nn.Module):
    """A branch of a residual trunk: normalization, linear, activation, linear.

    Args:
        width: Number of features of the stream.
        norm: Normalization over features, before the first layer.
        activation: Activation function between the layers.
        factor: Multiplies the output; ``None`` is the identity.
        negative_slope: Slope of ``leaky_relu`` below 0.
        expansion: Number of hidden units for each feature of the stream.
    """

    def __init__(
        self,
        width: int,
        norm: Norm,
        activation: Activation,
        factor: nn.Module | None = None,
        negative_slope: float = DEFAULT_SLOPE,
        expansion: int = 1,
    ) -> None:
        super().__init__()
        self.norm = make_norm(norm, width)
        self.first = nn.Linear(width, expansion * width)
        self.activation = make_activation(activation, negative_slope)
        self.second = nn.Linear(expansion * width, width)
        self.factor = factor or nn.Identity()

    def forward(self, stream: Tensor) -> Tensor:
        """Map the stream ``(*batch, width)`` to the residual, of the same shape."""
        return self.factor(self.second(self.activation(self.first(self.norm(stream)))))


class ResidualTrunk(Trunk):
    """A residual network with pre-normalized branches of two linear layers.

    The input layer computes the stream h. Each branch F adds its output, h <- h + F(h) (He et al. 2016,
    "Identity mappings"). A normalization and an activation follow the last branch. The input layer and the
    branches have an odd number of layers; if ``depth`` is even, an output layer with its own normalization
    and activation follows. So 4, 8 and 12 layers have 1, 3 and 5 branches. At depth 1 and 2 there are no
    branches, and the trunk equals `PlainTrunk`.

    Args:
        in_features: Number of input features.
        depth: Number of linear layers on the path through all branches, at least 1.
        width: Number of units of each layer.
        norm: Normalization over features, before each branch and each closing activation.
        activation: Activation function.
        branch_factor: Factor on the output of each of L branches: 1 (``none``), L^-1/2 (``inverse_sqrt``),
            L^-1 (``inverse``), or a trained number that starts at 0 (``trained``, ReZero).
        negative_slope: Slope of ``leaky_relu`` below 0, from 0 to 1.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self,
        in_features: int,
        depth: int = 2,
        width: int = 64,
        norm: Norm = "none",
        activation: Activation = "relu",
        branch_factor: BranchFactor = "none",
        negative_slope: float = DEFAULT_SLOPE,
    ) -> None:
        super().__init__(in_features, depth, width, norm, activation, negative_slope)
        require_choice(type(self).__name__, "branch_factor", branch_factor, BranchFactor)
        self.input = nn.Linear(in_features, width)
        count = (depth - 1) // 2
        self.branches = nn.ModuleList(
            ResidualBranch(width, norm, activation, make_branch_factor(branch_factor, count), negative_slope)
            for _ in range(count)
        )
        self.output = _closing_layers(depth, width, norm, activation, negative_slope)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        stream = self.input(features)
        for branch in self.branches:
            stream = stream + branch(stream)
        return self.output(stream)


class MultiSkipBranch(nn.Module):
    """A branch of a multi-skip trunk: activation, linear, normalization, all twice.

    Args:
        width: Number of features of the stream and of the hidden layer.
        norm: Normalization over features, after each linear layer.
        activation: Activation function before each linear layer.
        factor: Multiplies the output; ``None`` is the identity.
        negative_slope: Slope of ``leaky_relu`` below 0.
    """

    def __init__(
        self,
        width: int,
        norm: Norm,
        activation: Activation,
        factor: nn.Module | None = None,
        negative_slope: float = DEFAULT_SLOPE,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for _ in range(2):
            self.layers.append(make_activation(activation, negative_slope))
            self.layers.append(nn.Linear(width, width))
            self.layers.append(make_norm(norm, width))
        self.factor = factor or nn.Identity()

    def forward(self, stream: Tensor) -> Tensor:
        """Map the stream ``(*batch, width)`` to the residual, of the same shape."""
        return self.factor(self.layers(stream))


class MultiSkipTrunk(Trunk):
    """A residual network with skips from its input to every branch (Castanyer et al. 2025, arXiv 2506.15544).

    The input layer and its normalization compute g. The stream starts at h = g. Each branch F adds its output
    and g again, h <- h + F(h) + g. The layers after the branches and the meaning of ``depth`` are the same as
    in `ResidualTrunk`: 4, 8 and 12 layers have 1, 3 and 5 branches.

    ``skip_scale`` is a factor on the repeated g. It is a part of the checkpoint, and it is not trained. It is
    1, as in the reference; path-sensitive initialization reduces it with the number of branches, because
    equal summands add up coherently.

    Args:
        in_features: Number of input features.
        depth: Number of linear layers on the path through all branches, at least 1.
        width: Number of units of each layer.
        norm: Normalization over features, after the input layer, each linear layer of a branch, and before
            each closing activation.
        activation: Activation function.
        branch_factor: Factor on the output of each branch F, as in `ResidualTrunk`; not on the skips.
        negative_slope: Slope of ``leaky_relu`` below 0, from 0 to 1.

    Raises:
        UserError: If an argument is out of range.
    """

    skip_scale: Tensor

    def __init__(
        self,
        in_features: int,
        depth: int = 4,
        width: int = 64,
        norm: Norm = "layer",
        activation: Activation = "relu",
        branch_factor: BranchFactor = "none",
        negative_slope: float = DEFAULT_SLOPE,
    ) -> None:
        super().__init__(in_features, depth, width, norm, activation, negative_slope)
        require_choice(type(self).__name__, "branch_factor", branch_factor, BranchFactor)
        self.input = nn.Sequential(nn.Linear(in_features, width), make_norm(norm, width))
        count = (depth - 1) // 2
        self.branches = nn.ModuleList(
            MultiSkipBranch(width, norm, activation, make_branch_factor(branch_factor, count), negative_slope)
            for _ in range(count)
        )
        self.output = _closing_layers(depth, width, norm, activation, negative_slope)
        self.register_buffer("skip_scale", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        stream = self.input(features)
        skip = self.skip_scale * stream
        for branch in self.branches:
            stream = stream + branch(stream) + skip
        return self.output(stream)


class DenseTrunk(Trunk):
    """A chain whose layers also read the trunk's input (D2RL, Sinha et al. 2020, arXiv 2010.09163).

    Each layer except the first reads the concatenation of the previous layer's output and the input features.

    Args:
        in_features: Number of input features.
        depth: Number of linear layers, at least 1.
        width: Number of features of each layer.
        norm: Normalization over the units of a layer, before each activation.
        activation: Activation function. ``crelu`` and ``fourier`` make two features of each unit, so layers
            have half as many units.
        negative_slope: Slope of ``leaky_relu`` below 0, from 0 to 1.

    Raises:
        UserError: If an argument is out of range.
    """

    allows_two_features_per_unit = True

    def __init__(
        self,
        in_features: int,
        depth: int = 4,
        width: int = 64,
        norm: Norm = "none",
        activation: Activation = "relu",
        negative_slope: float = DEFAULT_SLOPE,
    ) -> None:
        super().__init__(in_features, depth, width, norm, activation, negative_slope)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(in_features + (width if index else 0), self.units),
                make_norm(norm, self.units),
                make_activation(activation, negative_slope),
            )
            for index in range(depth)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        hidden = self.layers[0](features)
        for layer in self.layers[1:]:
            hidden = layer(torch.cat([hidden, features], dim=-1))
        return hidden


def _closing_layers(
    depth: int, width: int, norm: Norm, activation: Activation, negative_slope: float
) -> nn.Sequential:
    """Build the layers after the branches; an even depth needs one more linear layer."""
    closing = nn.Sequential(make_norm(norm, width), make_activation(activation, negative_slope))
    if depth % 2 == 0:
        closing.extend(
            [nn.Linear(width, width), make_norm(norm, width), make_activation(activation, negative_slope)]
        )
    return closing
