"""Measures of weights: norm, distance from the start, and spectrum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lit_gfs.networks.layers import as_matrix


@torch.no_grad()
def weight_statistics(
    layers: Mapping[str, Sequence[Tensor]], initial: Mapping[str, Sequence[Tensor]]
) -> dict[str, Tensor]:
    """Measure the weights of L layers.

    Args:
        layers: The parameters of each layer.
        initial: The same before the first step.

    Returns:
        By name, ``(L,)`` each:

        - ``norm``: 2-norm of all parameters of the layer;
        - ``distance``: 2-norm of their difference from the initial ones, divided by the initial norm; NaN if
          that is 0;
        - ``largest_singular_value`` of the layer's matrix; NaN without a matrix. A convolution's kernel
          counts as the matrix ``(out_channels, in_channels * positions)``;
        - ``stable_rank``: the matrix's squared Frobenius norm divided by its squared largest singular value
          (Rudelson and Vershynin 2007), from 1 to the smaller side; NaN without a matrix, or if it is 0.
    """
    rows = []
    for name, parameters in layers.items():
        now, then = _flat(parameters), _flat(initial[name])
        norm, start = torch.linalg.vector_norm(now), torch.linalg.vector_norm(then)
        matrix = next((as_matrix(each) for each in parameters if each.ndim >= 2), None)
        largest, rank = now.new_full((), torch.nan), now.new_full((), torch.nan)
        if matrix is not None:
            wide = matrix.to(now.dtype)
            is_finite = wide.isfinite().all()  # LAPACK refuses other numbers
            largest = torch.linalg.matrix_norm(torch.where(is_finite, wide, 0.0), 2)
            largest = torch.where(is_finite, largest, torch.nan)
            rank = torch.linalg.matrix_norm(wide, "fro").square() / largest.square()
        distance = torch.linalg.vector_norm(now - then.to(now)) / start
        rows.append(torch.stack([norm, distance.nan_to_num(torch.nan, torch.nan), largest, rank]))
    columns = torch.stack(rows).unbind(1) if rows else [torch.zeros(0)] * 4
    return dict(zip(("norm", "distance", "largest_singular_value", "stable_rank"), columns, strict=True))


def _flat(parameters: Sequence[Tensor]) -> Tensor:
    """Join parameters into one vector, in float32 or wider."""
    joined = torch.cat([each.detach().flatten() for each in parameters])
    return joined if joined.dtype == torch.float64 else joined.float()
