"""Projection of matrices to a limited spectral norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from lit_gfs.errors import require_above, require_between
from lit_gfs.networks.layers import as_matrix
from lit_gfs.plasticity.weight_rule import Rate, WeightRule, Weights, scale_each_
from lit_gfs.utils.seeding import derive_seed

_FIRST_ITERATIONS = 30
"""Iterations when a weight is met, until the vector is close to the first singular vector."""


class SpectralLimit(WeightRule):
    """Scales matrices whose largest singular value s exceeds a limit: W <- W min(1, limit / s).

    This projection is that of Gouk et al. 2018 (arXiv 1804.04368); deep RL uses spectral normalization for
    stability (Gogianu et al. 2021, arXiv 2105.05246; Bjorck et al. 2021, arXiv 2106.01151). s comes from
    power iteration with a vector that is kept between steps. The estimate is never above s, and it
    follows the matrix, which changes little in a step. A convolution's kernel counts as the matrix
    ``(out_channels, in_channels * positions)``.

    Args:
        limit: Largest singular value, above 0.
        iterations: Power iterations in a step.
        seed: Seed of the first vectors.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(self, limit: float = 1.0, iterations: int = 1, seed: int = 0) -> None:
        super().__init__()
        require_above(0, limit=limit)
        require_between(1, 99, iterations=iterations)
        self.limit = limit
        self.iterations = iterations
        self.seed = seed

    @override
    def first_sight(self, name: str, weights: Weights) -> Tensor:
        """Return a vector close to the first left singular vector, ``(outputs,)``."""
        matrix = as_matrix(weights[name])
        generator = torch.Generator().manual_seed(derive_seed("spectral_limit", self.seed, name))
        vector = torch.randn(matrix.shape[0], generator=generator).to(matrix)
        return self._iterate(matrix, normalize(vector, dim=0), _FIRST_ITERATIONS)[0]

    @override
    def apply(self, weights: Weights, rates: Sequence[Rate]) -> dict[str, Tensor]:
        """Scale the matrices; return the share of scaled ones, and the mean singular value before."""
        tensors, values = list(weights.values()), []
        for name, weight in weights.items():
            self.kept[name], value = self._iterate(as_matrix(weight), self.kept[name], self.iterations)
            values.append(value.to(tensors[0].device))
        found = torch.stack(values)
        factors = torch.where(found > self.limit, self.limit / found, 1.0)
        scale_each_(tensors, factors)
        return {"limited_layers": (factors < 1).float().mean(), "singular_value": found.mean()}

    def _iterate(self, matrix: Tensor, vector: Tensor, times: int) -> tuple[Tensor, Tensor]:
        """Return the vector after power iterations, and the singular value that it estimates."""
        value = matrix.new_zeros(())
        for _ in range(times):
            product = matrix.mv(normalize(matrix.t().mv(vector), dim=0))
            value = torch.linalg.vector_norm(product)
            # A matrix of zeros has no direction; its vector stays.
            vector = torch.where(value > 0, product / value.clamp(min=1e-12), vector)
        return vector, value
