"""Heads: the last linear layer, which maps features to outputs."""

from __future__ import annotations

from torch import Tensor, nn

from lit_gfs.errors import UserError
from lit_gfs.networks.noise import factorized_noise, initial_sigmas, reset_sigmas_
from lit_gfs.utils.memory import require_memory


class LinearHead(nn.Linear):
    """A linear layer that starts with an orthogonal weight of a given gain and a zero bias.

    A small gain makes the initial policy almost uniform (0.01 in PPO); the gain of values is 1
    (Andrychowicz et al. 2021, "What matters in on-policy reinforcement learning?").

    Args:
        in_features: Number of input features.
        out_features: Number of outputs.
        gain: Singular value of the initial weight.

    Raises:
        UserError: If the gain is negative, or the weights do not fit into memory.
    """

    def __init__(self, in_features: int, out_features: int, gain: float = 1.0) -> None:
        if gain < 0:
            raise UserError(f"a head's gain must not be negative, got {gain}")
        weights = in_features * out_features
        require_memory(f"weights of a head with {out_features:,} outputs", 4 * weights)
        super().__init__(in_features, out_features)
        self.gain = gain
        nn.init.orthogonal_(self.weight, gain)
        nn.init.zeros_(self.bias)


class ActionValueHead(LinearHead):
    """The outputs that state the values of all actions.

    Args:
        in_features: Number of input features.
        num_actions: Number of actions.
        size: Outputs for each value: 1, or the atoms of a distribution.
        dueling: Whether the outputs are sums of a state's value and of advantages, see `dueling_sum`. Both
            streams are linear in the features, and so they are the rows of one layer.
        noisy: Whether the layer is noisy in training mode, see `lit_gfs.networks.noise`.
    """

    def __init__(
        self, in_features: int, num_actions: int, size: int = 1, dueling: bool = False, noisy: bool = False
    ) -> None:
        super().__init__(in_features, (num_actions + dueling) * size, gain=1.0)
        self.size = size
        self.dueling = dueling
        self.weight_sigma: nn.Parameter | None = None
        self.bias_sigma: nn.Parameter | None = None
        if noisy:
            self.weight_sigma, self.bias_sigma = initial_sigmas(self)

    def reset_parameters(self) -> None:
        """Draw the weight and the bias as PyTorch does, and give the sigmas their initial values."""
        super().reset_parameters()
        reset_sigmas_(self)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(*batch, in_features)`` to ``(*batch, num_actions)``, or ``(*batch, num_actions, size)``."""
        outputs = super().forward(features)
        if self.training and self.weight_sigma is not None and self.bias_sigma is not None:
            outputs = outputs + factorized_noise(features, self.weight_sigma, self.bias_sigma)
        by_action = outputs.unflatten(-1, (-1, self.size))
        if self.dueling:
            by_action = dueling_sum(by_action[..., :1, :], by_action[..., 1:, :])
        return by_action.squeeze(-1) if self.size == 1 else by_action


def dueling_sum(value: Tensor, advantage: Tensor) -> Tensor:
    """Return V + A - mean of A over the actions (Wang et al. 2016, arXiv 1511.06581, eq. 9).

    Without the mean, a constant could move from V to A. With distributions, this holds for each atom.

    Args:
        value: Outputs of the state's value, ``(*batch, 1, size)``.
        advantage: Outputs of the actions' advantages, ``(*batch, num_actions, size)``.

    Returns:
        Outputs of the actions' values, ``(*batch, num_actions, size)``.
    """
    return value + advantage - advantage.mean(-2, keepdim=True)
