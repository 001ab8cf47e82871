"""Representation: dormant units, the rank of the features, and policy churn.

All results stay on the device of the input. They are NaN if the input is not finite.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dormancy_scores(activations: Tensor) -> Tensor:
    """Return the activity of each unit relative to the mean of its layer (Sokar et al. 2023, equation 1).

    The score of unit i is ``E|h_i| / mean_k E|h_k|``, with the expectation over the batch. In a convolution a
    unit is a channel, and the expectation includes all positions. The mean of a layer's scores is 1.

    Args:
        activations: Output of the layer's activation function, ``(batch, units, *positions)``.

    Returns:
        Scores ``(units,)``, 0 or more; all 0 if all activations are zero, NaN for non-finite units.
    """
    means = activations.float().abs().mean(dim=[0, *range(2, activations.ndim)])
    layer_mean = means.mean()
    return torch.where(layer_mean == 0, 0.0, means / layer_mean)


def dormant_share(scores: Tensor, tau: float = 0.025) -> Tensor:
    """Compute the share of units with a score of at most ``tau`` (Sokar et al. 2023, definition 3.1).

    Args:
        scores: Dormancy scores ``(units,)`` of one layer, or of several concatenated layers.
        tau: Largest score of a dormant unit.

    Returns:
        The share ``()``, from 0 to 1; NaN if any score is NaN.
    """
    return torch.where(scores.isnan().any(), torch.nan, (scores <= tau).float().mean())


def singular_values(features: Tensor) -> Tensor:
    """Compute the singular values of a feature matrix, divided by its largest entry.

    The ranks depend only on ratios of singular values. Scaling keeps them precise for tiny and huge features.

    Args:
        features: One row per state, ``(batch, width)``, not centred.

    Returns:
        Singular values ``(min(batch, width),)``, in float32 or wider, in descending order; 0 for a zero
        matrix, NaN if an entry is not finite.
    """
    if features.dtype != torch.float64:
        features = features.float()
    finite = features.isfinite().all()
    # The decomposition would raise an error for non-finite entries.
    matrix = torch.where(finite, features, 0.0)
    largest = matrix.abs().max()
    values = torch.linalg.svdvals(matrix / torch.where(largest > 0, largest, 1.0))
    return torch.where(finite, values, torch.nan)


def srank(values: Tensor, delta: float = 0.01) -> Tensor:
    """Compute the effective rank of Kumar et al. (2021, section 3).

    It is the smallest k for which the k largest singular values have at least ``1 - delta`` of the total sum.

    Args:
        values: Singular values ``(n,)``, in descending order.
        delta: Share of the sum that may be missing.

    Returns:
        The rank ``()``, from 1 to n; 0 if all values are 0, NaN if any value is NaN.
    """
    sums = values.cumsum(0)
    total = sums[-1]
    rank = (1 + (sums < (1 - delta) * total).sum()) * (total > 0)
    return torch.where(total.isnan(), torch.nan, rank)


def effective_rank(values: Tensor) -> Tensor:
    """Compute the effective rank of Roy & Vetterli (2007).

    It is the exponential of the entropy of the singular values after normalization to a sum of 1.

    Args:
        values: Singular values ``(n,)``.

    Returns:
        The rank ``()``, from 1 to n; 0 if all values are 0, NaN if any value is NaN.
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
        after: Action values or logits after the update, of the same shape.

    Returns:
        The share ``()``, from 0 to 1; NaN if any entry is NaN.
    """
    changed = (before.argmax(-1) != after.argmax(-1)).float().mean()
    return torch.where((before.isnan() | after.isnan()).any(), torch.nan, changed)


def mean_action_churn(before: Tensor, after: Tensor) -> Tensor:
    """Compute the change of the mean of a continuous action (after Tang & Berseth 2024, policy churn).

    Args:
        before: Mean actions ``(batch, action_dim)`` before an update.
        after: Mean actions after the update, of the same shape.

    Returns:
        The mean absolute change ``()`` over states and action dimensions.
    """
    return (after - before).abs().mean()
