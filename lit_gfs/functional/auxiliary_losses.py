"""Terms that are added to a loss: isotropic features, churn, drift of features, distances, orthogonality.

All of them are computed in float32 or wider, also under autocast, and are differentiable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_INTEGRATED_UP_TO = 3.0
"""Upper end of the integral over the characteristic function, in standard deviations of its weight."""

REFERENCE_WIDTH = 64
"""Width for which coefficients of `parseval_penalty` are stated."""


def epps_pulley(samples: Tensor, points: int = 17) -> Tensor:
    """Compute the statistic of Epps & Pulley (1983) for a test against the standard normal distribution.

    With the empirical characteristic function phi_n of n samples it is

        n * integral of |phi_n(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt

    over t in [-3, 3], by the trapezoidal rule. The integrand is even, so only t >= 0 is evaluated.

    Args:
        samples: K sets of n samples, ``(n, K)``.
        points: Number of points of the rule in [0, 3], ends included.

    Returns:
        The statistic of each set ``(K,)``, 0 or more; of normal samples it does not grow with n.
    """
    t = torch.linspace(0, _INTEGRATED_UP_TO, points, dtype=samples.dtype, device=samples.device)
    normal = (-t.square() / 2).exp()
    angles = samples.unsqueeze(-1) * t
    distance = (angles.cos().mean(0) - normal).square() + angles.sin().mean(0).square()
    return 2 * len(samples) * torch.trapezoid(distance * normal, t, dim=-1)


def isotropy_penalty(features: Tensor, directions: Tensor, points: int = 17) -> Tensor:
    """Measure how far features are from an isotropic Gaussian: SIGReg (Balestriero & LeCun 2025, LeJEPA).

    Features that are projected to any direction would be standard normal. The penalty is the mean of
    `epps_pulley` over the projections to some directions.

    Args:
        features: One row per state, ``(*batch, width)``.
        directions: K unit vectors in columns, ``(width, K)``.
        points: Number of points of the integral.

    Returns:
        The penalty ``()``, 0 or more.
    """
    with _without_autocast(features.device):
        return epps_pulley(_wide(features).flatten(0, -2) @ directions, points).mean()


def mean_squared_change(values: Tensor, before: Tensor) -> Tensor:
    """Compute the mean squared difference of values now and before, over all their elements.

    For outputs, this is the churn that C-CHAIN reduces (Tang et al. 2025, arXiv 2506.00592); for features, it
    is the loss of proximal feature optimization (Moalla et al. 2024, arXiv 2405.00662).

    Args:
        values: Values of now, of any shape.
        before: The values before, of the same shape; there is no gradient to them.

    Returns:
        The mean ``()``.

    Raises:
        ValueError: If the shapes differ.
    """
    if values.shape != before.shape:
        raise ValueError(f"expected one shape, got {tuple(values.shape)} and {tuple(before.shape)}")
    return (_wide(values) - _wide(before).detach()).square().mean()


def squared_distance(parameters: Sequence[Tensor], origin: Sequence[Tensor]) -> Tensor:
    """Compute the squared 2-norm of the difference of parameters from where they were.

    As a loss it is the regenerative regularization of Kumar et al. (2023, arXiv 2308.11958, equation 1).

    Args:
        parameters: Tensors of any shapes.
        origin: As many tensors of the same shapes.

    Returns:
        The sum over all elements ``()``.
    """
    # One kernel for all tensors on a GPU, and one node of autograd's graph.
    differences = torch._foreach_sub([_wide(each) for each in parameters], [_wide(each) for each in origin])
    return torch.stack(torch._foreach_norm(differences)).square().sum()


def parseval_penalty(weights: Iterable[Tensor], scale: float = 2.0) -> Tensor:
    """Measure how far matrices W are from orthogonal ones times sqrt(s) (Chung et al. 2024, Parseval).

    For each matrix with r rows it is ``(64 / r)^2 ||W W^T - s I||^2``, with the Frobenius norm; the factor is
    the one by which the authors adapt their coefficient to the width. With fewer columns than rows, W W^T
    cannot be a multiple of I. Then ``W^T W - s I`` takes its place: it has the same gradient, and reaches 0.

    Args:
        weights: Matrices ``(rows, columns)``, or kernels of convolutions ``(rows, *others)``, which count as
            matrices with ``others`` flattened.
        scale: The square s of the singular values.

    Returns:
        The sum over all matrices ``()``.
    """
    penalties = []
    for weight in weights:
        matrix = _wide(weight).flatten(1)
        rows, columns = matrix.shape
        with _without_autocast(weight.device):
            gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
        error = gram - scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        penalties.append((REFERENCE_WIDTH / rows) ** 2 * error.square().sum())
    return torch.stack(penalties).sum()


def unit_directions(directions: Tensor) -> Tensor:
    """Scale the columns of a matrix ``(width, K)`` to a 2-norm of 1."""
    return directions / torch.linalg.vector_norm(directions, dim=0)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context without autocast, which would round products of matrices."""
    is_on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_on else nullcontext()
