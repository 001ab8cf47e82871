"""Dormancy by gradients: units whose weights hardly get a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_gfs.metrics.gradient_flow import LayerGradients


def gradient_magnitudes(gradient: Tensor) -> Tensor:
    """Return the mean absolute gradient of each unit's incoming weights, ``(units,)``, in float32 or wider.

    Args:
        gradient: Gradient of a weight, ``(units, *inputs)``; in a convolution a unit is an output channel.
    """
    wide = gradient if gradient.dtype == torch.float64 else gradient.float()
    return wide.abs().flatten(1).mean(1)


def gradient_scores(gradient: Tensor) -> Tensor:
    """Return the gradient of each unit relative to the mean of its layer (GraMa, Liu et al. 2025).

    The score of unit i is ``g_i / mean_k g_k``, where g_i is the mean absolute gradient of the unit's
    incoming weights. It is the score of Sokar et al. (2023) with gradients in the place of activations (arXiv
    2505.24061). The mean of a layer's scores is 1.

    Args:
        gradient: Gradient of a weight, ``(units, *inputs)``.

    Returns:
        Scores ``(units,)``, 0 or more; all 0 if the whole gradient is 0, NaN if it is not finite.
    """
    magnitudes = gradient_magnitudes(gradient)
    mean = magnitudes.mean()
    scores = torch.where(mean == 0, 0.0, magnitudes / mean)
    return torch.where(mean.isfinite(), scores, torch.nan)


def gradient_dormant_shares(gradients: LayerGradients, tau: float) -> Tensor:
    """Compute, for each layer, the share of units with a gradient score of at most ``tau``.

    Args:
        gradients: Gradients of L layers. Those of weights count, which have at least two dimensions.
        tau: Largest score of a dormant unit.

    Returns:
        Shares ``(L,)``, from 0 to 1; NaN for a layer without the gradient of a weight, or with one that is
        not finite.
    """
    present = (each for layer in gradients.values() for each in layer if each is not None)
    device = next((each.device for each in present), torch.device("cpu"))
    shares = []
    for layer in gradients.values():
        scores = [gradient_scores(each).to(device) for each in layer if each is not None and each.ndim >= 2]
        every = torch.cat(scores) if scores else torch.full((1,), torch.nan, device=device)
        shares.append(torch.where(every.isnan().any(), torch.nan, (every <= tau).float().mean()))
    return torch.stack(shares)


def total_share(shares: Sequence[float], units: Sequence[int]) -> float:
    """Return the mean of shares, weighted by units and without those that are NaN; NaN if all are.

    Args:
        shares: The shares of L layers.
        units: Their numbers of units.
    """
    known = [(share, count) for share, count in zip(shares, units, strict=True) if share == share]
    total = sum(count for _, count in known)
    return sum(share * count for share, count in known) / total if total else float("nan")
