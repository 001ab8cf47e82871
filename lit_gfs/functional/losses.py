"""Losses of the agents, and their log-densities and entropies, as pure functions of tensors.

Every loss is a mean over its batch. Mismatched shapes raise a ``ValueError``; they are never broadcast.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def conservative_penalty(q_values: Tensor, action: Tensor) -> Tensor:
    """Return how far all values stand above that of the chosen action: the mean of log sum exp Q - Q(a).

    This is the regularizer of conservative Q-learning, in its form CQL(H) for discrete actions (Kumar et al.
    2020, arXiv 2006.04779, eq. 4). It is at least 0, and near 0 where the chosen action is the best by far.

    Args:
        q_values: Values of all actions, ``(batch, num_actions)``.
        action: Indices of the chosen actions, ``(batch,)``.
    """
    return (q_values.logsumexp(-1) - _select(q_values, action)).mean()


def max_q_value(next_q: Tensor) -> Tensor:
    """Return the value of the best action, ``(batch, num_actions)`` to ``(batch,)`` (Watkins 1989)."""
    return next_q.amax(-1)


def of_action(outputs: Tensor, action: Tensor) -> Tensor:
    """Pick a network's outputs for one action from those for all actions.

    Args:
        outputs: Values of all actions ``(batch, num_actions)``, or logits of their distributions ``(batch,
            num_actions, atoms)``.
        action: Indices of the actions, ``(batch,)``.

    Returns:
        Values ``(batch,)``, or logits ``(batch, atoms)``.

    Raises:
        ValueError: If the batches differ.
    """
    if outputs.ndim == 2:
        return _select(outputs, action)
    _check_same_shape(outputs=outputs[:, 0, 0], action=action)
    index = action.long().view(-1, 1, 1).expand(-1, 1, outputs.shape[-1])
    return outputs.gather(1, index).squeeze(1)


def weighted_mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean of losses ``(batch,)``, each multiplied by its importance weight if there are any.

    Args:
        losses: Losses, ``(batch,)``.
        weight: Weights ``(batch,)`` that undo the bias of a sample (Schaul et al. 2016, section 3.4).

    Raises:
        ValueError: If the shapes differ.
    """
    if weight is None:
        return losses.mean()
    _check_same_shape(losses=losses, weight=weight)
    return (weight * losses).mean()


class PolicyLoss(NamedTuple):
    """PPO's clipped policy loss and its diagnostics; only ``loss`` carries a gradient."""

    loss: Tensor
    """Negative mean of the clipped surrogate objective."""
    approx_kl: Tensor
    """Estimate of KL(old policy || policy)."""
    clip_fraction: Tensor
    """Share of probability ratios outside of ``[1 - clip, 1 + clip]``."""


def clipped_policy_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> PolicyLoss:
    """Return PPO's clipped surrogate loss (Schulman et al. 2017, eq. 7).

    The KL estimate is the mean of (r - 1) - log r over the probability ratios r. It is unbiased and never
    negative (Schulman 2020, "Approximating KL divergence", estimator k3).

    Args:
        log_prob: Log-probabilities of the actions under the current policy, ``(batch,)``.
        old_log_prob: Log-probabilities under the policy that collected the rollout, ``(batch,)``.
        advantage: Advantages, ``(batch,)``.
        clip: Half-width of the clipping interval around a ratio of 1.

    Returns:
        Loss, approximate KL divergence and clip fraction, scalars.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    # The minimum removes the gain from moving the ratio out of the interval, but never hides a loss.
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
    with torch.no_grad():
        # expm1(log r) = r - 1, exact for ratios close to 1.
        approx_kl = (log_ratio.expm1() - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > clip).float().mean()
    return PolicyLoss(loss, approx_kl, clip_fraction)


def value_loss(
    value: Tensor, target: Tensor, old_value: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """Return half the mean squared error of values, optionally clipped as in OpenAI's baselines.

    Clipping limits the change of a value since the rollout to ``clip``. The loss takes the larger of the
    squared errors with and without this limit, so a larger change does not reduce the loss further.

    Args:
        value: Values, ``(batch,)``.
        target: Targets, ``(batch,)``.
        old_value: Values at the time of the rollout, ``(batch,)``; only used with ``clip``.
        clip: Largest change of a value; ``None`` does not clip.

    Returns:
        The mean of (value - target)^2 / 2.

    Raises:
        ValueError: If the shapes differ, or ``old_value`` is missing.
    """
    _check_same_shape(value=value, target=target)
    error = (value - target).square()
    if clip is not None:
        if old_value is None:
            raise ValueError("a clipped value loss needs old_value")
        _check_same_shape(value=value, old_value=old_value)
        clipped = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - target).square())
    return 0.5 * error.mean()


def normalize_advantage(advantage: Tensor) -> Tensor:
    """Shift and scale advantages to mean 0 and standard deviation 1; a single advantage is unchanged."""
    if advantage.numel() < 2:
        return advantage
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """Return the share of the targets' variance that the values explain.

    Args:
        value: Predicted values, of any shape.
        target: Value targets, of the same shape.

    Returns:
        1 - Var(target - value) / Var(target): 1 is perfect, 0 is no better than a constant. Constant targets
        give 0.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape(value=value, target=target)
    total = target.var(correction=0)
    explained = 1 - (target - value).var(correction=0) / total
    return torch.where(total > 0, explained, torch.zeros_like(total))


def categorical_log_prob(logits: Tensor, action: Tensor) -> Tensor:
    """Return the log-probabilities ``(*batch,)`` of actions.

    Args:
        logits: Unnormalized log-probabilities, ``(*batch, num_actions)``.
        action: Action indices, ``(*batch,)``.
    """
    return _select(logits.log_softmax(-1), action)


def categorical_entropy(logits: Tensor) -> Tensor:
    """Return the entropy ``(*batch,)`` in nats of logits ``(*batch, num_actions)``."""
    log_prob = logits.log_softmax(-1)
    return -(log_prob.exp() * log_prob).sum(-1)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Return log-densities of actions under a Gaussian with independent dimensions.

    Args:
        mean: Means, ``(*batch, action_dim)``.
        log_std: Logarithms of the standard deviations, ``(*batch, action_dim)`` or ``(action_dim,)``.
        action: Actions, ``(*batch, action_dim)``.

    Returns:
        Log-densities summed over the action's dimensions, ``(*batch,)``.
    """
    _check_same_shape(mean=mean, action=action)
    standardized = (action - mean) * (-log_std).exp()
    return -(0.5 * standardized.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Return the entropy ``(*batch,)`` in nats of a Gaussian with independent dimensions.

    Args:
        log_std: Logarithms of the standard deviations, ``(*batch, action_dim)``.
    """
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def _select(values: Tensor, index: Tensor) -> Tensor:
    """Pick one value ``(*batch,)`` from each row of ``values`` ``(*batch, n)``."""
    _check_same_shape(values=values[..., 0], index=index)
    return values.gather(-1, index.long().unsqueeze(-1)).squeeze(-1)


def _check_same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"expected one shape, got {', '.join(f'{name} {shape}' for name, shape in shapes.items())}"
        )
