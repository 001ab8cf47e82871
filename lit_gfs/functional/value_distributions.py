"""How a network states a value: as one number, or as a distribution over a fixed support.

A number is learned by regression. A distribution over the atoms of a support is learned by classification,
with the cross-entropy to a target distribution; the value is its expectation. Two target distributions:

- `C51` (Bellemare et al. 2017, arXiv 1707.06887) projects the distribution of the next state, moved by reward
  and discount, onto the support. A target that is a number is split between its two neighbouring atoms.
- `HLGauss` (Imani & White 2018; Farebrother et al. 2024, arXiv 2403.03950) spreads a target that is a number
  over the bins of a histogram, as a Gaussian around it.

All of them are stateless: they map the outputs of a network to values and losses, on the outputs' device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gfs.errors import UserError, require_at_least, require_one_of
from lit_gfs.functional.returns import td_target

Regression = Literal["huber", "mse"]
ValueLoss = Literal["huber", "mse", "c51", "hl_gauss"]
"""How values are learned: by regression, or by classification of a distribution's atoms."""


class ValueDistribution(Protocol):
    """What an agent asks of the outputs ``(*batch, size)`` that state values; ``(*batch,)`` if size is 1."""

    @property
    def size(self) -> int:
        """Number of outputs for one value."""

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the expected values ``(*batch,)`` of outputs."""

    def bootstrapped(
        self, reward: Tensor, next_outputs: Tensor, terminated: Tensor, discount: float | Tensor
    ) -> Tensor:
        """Return what outputs are to become by Bellman's equation, from the outputs for the next state.

        Args:
            reward: Rewards up to the next state, ``(batch,)``.
            next_outputs: Outputs for the action that is taken in the next state.
            terminated: Whether the episode ended before it, boolean ``(batch,)``.
            discount: Discount of the next state's value, ``(batch,)`` or a number.

        Returns:
            Targets for `losses`, without gradient if ``next_outputs`` has none.
        """

    def encoded(self, value: Tensor) -> Tensor:
        """Return what outputs are to become, given values ``(*batch,)``."""

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return each loss ``(*batch,)`` between outputs and the result of `bootstrapped` or `encoded`."""

    def surprise(self, losses: Tensor, td_error: Tensor) -> Tensor:
        """Return how much there is to learn from transitions ``(batch,)``: their replay priorities."""

    def metrics(self, value: Tensor) -> dict[str, Tensor]:
        """Return what is to be recorded about target values, by tag."""


@dataclass(frozen=True)
class Scalar:
    """A value as one number.

    Args:
        loss: ``huber``: d^2 / 2 up to |d| = 1 and |d| - 1/2 beyond; ``mse``: d^2, without a factor 1/2.
    """

    loss: Regression = "huber"

    @property
    def size(self) -> int:
        """One output is the value."""
        return 1

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the outputs."""
        return outputs

    def bootstrapped(
        self, reward: Tensor, next_outputs: Tensor, terminated: Tensor, discount: float | Tensor
    ) -> Tensor:
        """Return r + discount v(s'), ``(batch,)``; see `lit_gfs.functional.returns.td_target`."""
        return td_target(reward, next_outputs, terminated, discount)

    def encoded(self, value: Tensor) -> Tensor:
        """Return the values."""
        return value

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the losses ``(*batch,)`` of the differences d = target - output.

        Raises:
            ValueError: If the shapes differ.
        """
        _check_shapes(outputs, target)
        loss = F.huber_loss if self.loss == "huber" else F.mse_loss
        return loss(outputs, target, reduction="none")

    def surprise(self, losses: Tensor, td_error: Tensor) -> Tensor:
        """Return the absolute temporal-difference errors (Schaul et al. 2016, section 3.3)."""
        return td_error.abs()

    def metrics(self, value: Tensor) -> dict[str, Tensor]:
        """Return nothing."""
        return {}


@dataclass(frozen=True)
class _Categorical:
    """A distribution over atoms between two values, from logits ``(*batch, atoms)``.

    Args:
        v_min: Lower end of the support.
        v_max: Upper end of the support.
        atoms: Number of atoms.

    Raises:
        UserError: If the support is empty, or there are fewer than two atoms.
    """

    v_min: float = -10.0
    v_max: float = 10.0
    atoms: int = 51

    def __post_init__(self) -> None:
        if not -math.inf < self.v_min < self.v_max < math.inf:
            raise UserError(
                f"v_min is {self.v_min:g} and v_max is {self.v_max:g}; expected v_min below v_max"
            )
        require_at_least(2, atoms=self.atoms)

    @property
    def size(self) -> int:
        """The number of atoms."""
        return self.atoms

    def support(self, like: Tensor) -> Tensor:
        """Return the values of the atoms, ``(atoms,)``, with the type and on the device of a tensor."""
        return torch.linspace(self.v_min, self.v_max, self.atoms, dtype=like.dtype, device=like.device)

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the expectations ``(*batch,)`` of logits."""
        return (outputs.softmax(-1) * self.support(outputs)).sum(-1)

    def bootstrapped(
        self, reward: Tensor, next_outputs: Tensor, terminated: Tensor, discount: float | Tensor
    ) -> Tensor:
        """Return the distribution around r + discount E[v(s')], ``(batch, atoms)``."""
        return self.encoded(td_target(reward, self.mean(next_outputs), terminated, discount))

    def encoded(self, value: Tensor) -> Tensor:
        """Return probabilities ``(*batch, atoms)`` for values ``(*batch,)``, clipped to the support."""
        raise NotImplementedError

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropies ``(*batch,)`` of logits to probabilities.

        Raises:
            ValueError: If the shapes differ.
        """
        _check_shapes(outputs, target)
        return -(target * outputs.log_softmax(-1)).sum(-1)

    def surprise(self, losses: Tensor, td_error: Tensor) -> Tensor:
        """Return the cross-entropies: the loss that is minimized (Hessel et al. 2018)."""
        return losses

    def metrics(self, value: Tensor) -> dict[str, Tensor]:
        """Return which target values lie beyond the support."""
        return {"loss/support_clipped": ((value < self.v_min) | (value > self.v_max)).float()}


@dataclass(frozen=True)
class C51(_Categorical):
    """A distribution of returns over atoms at equal distances (Bellemare et al. 2017).

    Args:
        v_min: The smallest atom.
        v_max: The largest atom.
        atoms: Number of atoms.

    Raises:
        UserError: If the support is empty, or there are fewer than two atoms.
    """

    def bootstrapped(
        self, reward: Tensor, next_outputs: Tensor, terminated: Tensor, discount: float | Tensor
    ) -> Tensor:
        """Return the distribution of r + discount z, projected, with z from the next state's distribution."""
        atoms = self.support(next_outputs).expand_as(next_outputs)
        if isinstance(discount, Tensor):
            discount = discount.unsqueeze(-1)
        moved = td_target(
            reward.unsqueeze(-1).expand_as(atoms), atoms, terminated.unsqueeze(-1).expand_as(atoms), discount
        )
        return self.projected(next_outputs.softmax(-1), moved)

    def projected(self, probabilities: Tensor, places: Tensor) -> Tensor:
        """Move probabilities at any places to the atoms (Bellemare et al. 2017, eq. 7).

        The probability at a place is split between the two neighbouring atoms, in proportion to the nearness
        of each. A place beyond the support counts as the nearest end of it.

        Args:
            probabilities: Probabilities at the places, ``(*batch, n)``.
            places: The places, ``(*batch, n)``.

        Returns:
            The probability of each atom, ``(*batch, atoms)``.
        """
        atoms = self.support(places)
        width = (self.v_max - self.v_min) / (self.atoms - 1)
        distance = (places.clamp(self.v_min, self.v_max).unsqueeze(-2) - atoms.unsqueeze(-1)).abs()
        share = (1 - distance / width).clamp(0, 1)  # (*batch, atoms, n)
        return (share * probabilities.unsqueeze(-2)).sum(-1)

    def encoded(self, value: Tensor) -> Tensor:
        """Return the two neighbouring atoms' shares of each value, ``(*batch, atoms)``."""
        return self.projected(torch.ones_like(value).unsqueeze(-1), value.unsqueeze(-1))


@dataclass(frozen=True)
class HLGauss(_Categorical):
    """A histogram of a Gaussian around each target (Farebrother et al. 2024, section 3.1).

    The probability of a bin is the integral over it of a Gaussian whose mean is the target. The Gaussian is
    cut off at the ends of the support. So values close to an end, by less than about two sigma, come out
    nearer to the middle.

    Args:
        v_min: Lower edge of the first bin.
        v_max: Upper edge of the last bin.
        atoms: Number of bins; their centers are the atoms.
        sigma_ratio: Standard deviation of the Gaussian, in widths of a bin.

    Raises:
        UserError: If the support is empty, there are fewer than two bins, or the deviation is not positive.
    """

    sigma_ratio: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_ratio < math.inf:
            raise UserError(f"sigma_ratio is {self.sigma_ratio:g}; expected a number above 0, such as 0.75")

    @property
    def width(self) -> float:
        """The width of a bin."""
        return (self.v_max - self.v_min) / self.atoms

    def support(self, like: Tensor) -> Tensor:
        """Return the centers of the bins, ``(atoms,)``, with the type and on the device of a tensor."""
        first, last = self.v_min + self.width / 2, self.v_max - self.width / 2
        return torch.linspace(first, last, self.atoms, dtype=like.dtype, device=like.device)

    def encoded(self, value: Tensor) -> Tensor:
        """Return the probability of each bin, ``(*batch, atoms)``, for values ``(*batch,)``."""
        edges = torch.linspace(self.v_min, self.v_max, self.atoms + 1, dtype=value.dtype, device=value.device)
        center = value.clamp(self.v_min, self.v_max).unsqueeze(-1)
        # Twice the Gaussian's cumulative distribution, less one: both constants cancel in the ratio.
        below = torch.erf((edges - center) / (math.sqrt(2) * self.sigma_ratio * self.width))
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


def value_distribution(loss: ValueLoss, v_min: float, v_max: float, atoms: int) -> ValueDistribution:
    """Return how values are stated, by the name of their loss.

    Args:
        loss: ``huber`` or ``mse`` for numbers, ``c51`` or ``hl_gauss`` for distributions.
        v_min: Lower end of a distribution's support.
        v_max: Upper end of a distribution's support.
        atoms: Atoms, or bins, of a distribution's support.

    Raises:
        UserError: If the name is unknown, or the support is empty.
    """
    require_one_of(get_args(ValueLoss), loss=loss)
    if loss == "c51":
        return C51(v_min, v_max, atoms)
    if loss == "hl_gauss":
        return HLGauss(v_min, v_max, atoms)
    return Scalar(loss)


def _check_shapes(outputs: Tensor, target: Tensor) -> None:
    if outputs.shape != target.shape:
        raise ValueError(
            f"expected one shape, got outputs {tuple(outputs.shape)} and target {tuple(target.shape)}"
        )
