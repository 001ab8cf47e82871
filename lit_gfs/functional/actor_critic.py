"""Losses of actors and critics of continuous actions, as pure functions of tensors.

A critic is a network of action values Q(s, a). The values of several are stacked, ``(critics, batch)``. Every
loss is a mean over its batch.
"""

from __future__ import annotations

from torch import Tensor


def smallest_value(values: Tensor) -> Tensor:
    """Return the smallest of the critics' values, ``(critics, batch)`` to ``(batch,)``.

    A policy climbs towards the errors of its critic, so a single critic promises too much. The smaller of two
    critics with different errors does so less (clipped double Q-learning, Fujimoto et al. 2018, arXiv
    1802.09477, eq. 10).
    """
    return values.amin(0)


def soft_value(values: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
    """Return the soft value of a state, Q(s, a) - alpha log pi(a | s) (Haarnoja et al. 2018, eq. 3).

    Args:
        values: Values of an action that the policy drew, ``(critics, batch)``; the smallest counts.
        log_prob: The action's log-density, ``(batch,)``.
        temperature: The weight alpha of the entropy, ``()``.

    Returns:
        One-sample estimates of the soft values, ``(batch,)``.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check_shapes(values, log_prob)
    return smallest_value(values) - temperature * log_prob


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each critic, summed over critics.

    Args:
        values: Values of the actions that were taken, ``(critics, batch)``.
        target: Targets of all critics, ``(batch,)``; no gradient flows into them.

    Returns:
        The loss ``()``, without a factor 1/2.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check_shapes(values, target)
    return (values - target.detach()).square().mean(-1).sum()


def soft_policy_loss(values: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
    """Return the negative mean soft value of the policy's actions (Haarnoja et al. 2018, eq. 7).

    Args:
        values: Values of actions that the policy drew, ``(critics, batch)``, with gradients of the actions.
        log_prob: Their log-densities, ``(batch,)``, with gradients of the policy.
        temperature: The weight of the entropy, ``()``; no gradient flows into it.

    Returns:
        The loss ``()``.

    Raises:
        ValueError: If the shapes do not match.
    """
    return -soft_value(values, log_prob, temperature.detach()).mean()


def deterministic_policy_loss(value: Tensor) -> Tensor:
    """Return the negative mean value of the policy's actions (Silver et al. 2014; Lillicrap et al. 2015).

    Args:
        value: Values ``(batch,)`` of the actions that the policy takes, by one critic.
    """
    return -value.mean()


def temperature_loss(temperature: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Return the loss that raises the temperature while the entropy is below its target.

    It is alpha (entropy - target), with the entropy estimated by -log pi (Haarnoja et al. 2018, arXiv
    1812.05905, eq. 18).

    Args:
        temperature: The temperature alpha ``()``, with a gradient.
        log_prob: Log-densities of actions that the policy drew, ``(batch,)``; no gradient flows into them.
        target_entropy: The entropy that the policy is held at, in nats.

    Returns:
        The loss ``()``.
    """
    return -(temperature * (log_prob.detach() + target_entropy)).mean()


def _check_shapes(values: Tensor, of_batch: Tensor) -> None:
    if values.ndim != 2 or values.shape[1:] != of_batch.shape:
        raise ValueError(
            f"expected (critics, batch) and (batch,), got {tuple(values.shape)} and {tuple(of_batch.shape)}"
        )
