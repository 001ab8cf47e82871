"""Representation: how many units of a network are alive, how many dimensions it spans, how its policy churns.

Every result stays on the device of its input, and is NaN where that is not finite.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dormancy_scores(activations: Tensor) -> Tensor:
    """Score each unit of a layer by its share in the layer's activity (Sokar et al. 2023, equation 1).

    The score of unit i is ``E|h_i| / mean_k E|h_k|``, the expectation over the batch and, of a convolution,
    over positions: there a unit is a channel. The mean of a layer's scores is 1.

    Args:
        activations: What the layer hands on, after its activation function: ``(batch, units, *positions)``.

    Returns:
        Scores ``(units,)``, 0 or more; all 0 for a layer that is wholly zero, NaN for units that are not
        finite.
    """
    means = activations.float().abs().mean(dim=[0, *range(2, activations.ndim)])
    layer_mean = means.mean()
    return torch.where(layer_mean == 0, 0.0, means / layer_mean)


def dormant_share(scores: Tensor, tau: float = 0.025) -> Tensor:
    """Compute the share of dormant units, which score at most ``tau`` (Sokar et al. 2023, definition 3.1).

    Args:
        scores: Dormancy scores ``(units,)`` of one layer, or of several in a row.
        tau: The largest score of a dormant unit.

    Returns:
        The share ``()``, from 0 to 1; NaN if a score is.
    """
    return torch.where(scores.isnan().any(), torch.nan, (scores <= tau).float().mean())


def singular_values(features: Tensor) -> Tensor:
    """Compute the singular values of a matrix of features, relative to its largest entry.

    Only their ratios matter to the ranks, and scaled they are as exact for tiny features as for huge ones.

    Args:
        features: One row per state, ``(batch, width)``; they are not centred.

    Returns:
        Singular values ``(min(batch, width),)``, in float32 or wider, the largest first; 0 for a zero matrix,
        NaN if an entry is not finite.
    """
    if features.dtype != torch.float64:
        features = features.float()
    finite = features.isfinite().all()
    # The decomposition raises an error for entries that are not finite.
    matrix = torch.where(finite, features, 0.0)
    largest = matrix.abs().max()
    values = torch.linalg.svdvals(matrix / torch.where(largest > 0, largest, 1.0))
    return torch.where(finite, values, torch.nan)


def srank(values: Tensor, delta: float = 0.01) -> Tensor:
    """Compute the effective rank of Kumar et al. (2021, section 3).

    It is the smallest k for which the k largest singular values make up ``1 - delta`` of their sum.

    Args:
        values: Singular values ``(n,)``, the largest first.
        delta: The share of the sum that may be left out.

    Returns:
        The rank ``()``, from 1 to n; 0 if all values are, NaN if one is.
    """
    sums = values.cumsum(0)
    total = sums[-1]
    rank = (1 + (sums < (1 - delta) * total).sum()) * (total > 0)
    return torch.where(total.isnan(), torch.nan, rank)


def effective_rank(values: Tensor) -> Tensor:
    """Compute the effective rank of Roy & Vetterli (2007).

    It is the exponential of the entropy of the singular values, normalized to a sum of 1.

    Args:
        values: Singular values ``(n,)``.

    Returns:
        The rank ``()``, from 1 to n; 0 if all values are, NaN if one is.
    """
    total = values.sum()
    entropy = torch.special.entr(values / total).sum()
    return torch.where(total == 0, 0.0, entropy.exp())


def feature_norm(features: Tensor) -> Tensor:
    """Compute the mean 2-norm of features.

    Args:
        features: One row per state, ``(batch, width)``.

    Returns:
        The mean ``()``.
    """
    return torch.linalg.vector_norm(features.float(), dim=-1).mean()


def greedy_churn(before: Tensor, after: Tensor) -> Tensor:
    """Compute the share of states whose greedy action changed (Schaul et al. 2022, section 1.1).

    Args:
        before: Action values or logits ``(batch, num_actions)`` before an update; -inf masks an action.
        after: Those after it.

    Returns:
        The share ``()``, from 0 to 1; NaN if an entry is.
    """
    changed = (before.argmax(-1) != after.argmax(-1)).float().mean()
    return torch.where((before.isnan() | after.isnan()).any(), torch.nan, changed)


def mean_action_churn(before: Tensor, after: Tensor) -> Tensor:
    """Compute by how much the mean of a continuous action changed (after Tang & Berseth 2024, policy churn).

    Args:
        before: Mean actions ``(batch, action_dim)`` before an update.
        after: Those after it.

    Returns:
        The mean absolute change ``()`` over states and action dimensions.
    """
    return (after - before).abs().mean()
