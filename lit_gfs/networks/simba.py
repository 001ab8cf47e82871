"""SimBa: a residual trunk with a linear path from its input to its output."""

from __future__ import annotations

from torch import Tensor, nn

from lit_gfs.errors import UserError
from lit_gfs.networks.branch_factors import BranchFactor, make_branch_factor
from lit_gfs.networks.components import DEFAULT_SLOPE, Activation, Norm, make_norm, require_choice
from lit_gfs.networks.trunks import ResidualBranch, Trunk
from lit_gfs.utils.memory import require_memory


class SimbaTrunk(Trunk):
    """The residual network of SimBa (Lee et al. 2024, arXiv 2410.09754).

    The input layer computes the stream h, without an activation. Each branch F adds its output, h <- h +
    F(h): normalization, a layer of ``expansion * width`` units, activation, a layer of ``width`` units. A
    normalization follows the last branch, and no activation. So a linear path leads from the input to the
    output.

    The input layer and the branches have an odd number of layers: depth 3 has one branch, depth 5 two. The
    paper's actor is 3 x 128, its critic 5 x 512, both with normalized observations.

    Args:
        in_features: Number of input features.
        depth: Number of linear layers on the path through all branches: odd, at least 1.
        width: Number of features of the stream.
        norm: Normalization over features, before each branch and after the last.
        activation: Activation function within branches.
        branch_factor: Factor on the output of each branch, as in `ResidualTrunk`.
        expansion: Number of hidden units of a branch for each feature of the stream.
        negative_slope: Slope of ``leaky_relu`` below 0, from 0 to 1.

    Raises:
        UserError: If an argument is out of range, or the depth is even.
    """

    def __init__(
        self,
        in_features: int,
        depth: int = 3,
        width: int = 128,
        norm: Norm = "layer",
        activation: Activation = "relu",
        branch_factor: BranchFactor = "none",
        expansion: int = 4,
        negative_slope: float = DEFAULT_SLOPE,
    ) -> None:
        super().__init__(in_features, depth, width, norm, activation, negative_slope)
        require_choice(type(self).__name__, "branch_factor", branch_factor, BranchFactor)
        if depth % 2 == 0:
            raise UserError(
                f"SimbaTrunk has depth {depth}; expected an odd number, one input layer and two layers for "
                f"each branch, such as {depth - 1} or {depth + 1}"
            )
        if expansion < 1:
            raise UserError(f"SimbaTrunk has expansion {expansion}; expected a whole number of at least 1")
        weights = width * (in_features + expansion * (depth - 1) * width)
        require_memory(f"weights of SimbaTrunk with depth {depth} and width {width}", 4 * weights)
        self.input = nn.Linear(in_features, width)
        count = (depth - 1) // 2
        self.branches = nn.ModuleList(
            ResidualBranch(
                width,
                norm,
                activation,
                make_branch_factor(branch_factor, count),
                negative_slope,
                expansion,
            )
            for _ in range(count)
        )
        self.output = make_norm(norm, width)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        stream = self.input(features)
        for branch in self.branches:
            stream = stream + branch(stream)
        return self.output(stream)
