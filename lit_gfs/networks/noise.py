"""Noisy linear layers (Fortunato et al. 2018, arXiv 1706.10295), which explore by learned noise.

A noisy layer computes (mu_w + sigma_w * eps_w) x + mu_b + sigma_b * eps_b, with trained mu and sigma. The
noise is factorized: eps_w = f(eps_out) f(eps_in)^T and eps_b = f(eps_out), with f(e) = sign(e) sqrt(|e|) of
standard normal numbers, one for each input and each output. So the noise adds f(eps_out) * (sigma_w
(f(eps_in) * x) + sigma_b) to the output, and no noisy weight has to be built.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIGMA = 0.5
"""Initial sigma of a layer, times the root of its number of inputs (Fortunato et al. 2018, section 3.2)."""


def initial_sigmas(layer: nn.Linear) -> tuple[nn.Parameter, nn.Parameter]:
    """Return new sigmas of a layer's weight ``(out_features, in_features)`` and bias ``(out_features,)``."""
    sigma = SIGMA / math.sqrt(layer.in_features)
    return nn.Parameter(torch.full_like(layer.weight, sigma)), nn.Parameter(
        torch.full((layer.out_features,), sigma)
    )


def sigmas_of(layer: nn.Module) -> list[nn.Parameter]:
    """Return the sigmas of a noisy layer, also of TorchRL's; other modules have none.

    A sigma has the shape of a weight or of a bias, but it scales noise and must be free to shrink to zero. So
    whatever acts on weights leaves it alone.
    """
    named = dict(layer.named_parameters(recurse=False))
    return [named[name] for name in ("weight_sigma", "bias_sigma") if name in named]


@torch.no_grad()
def reset_sigmas_(layer: nn.Linear) -> None:
    """Give the sigmas of a layer, if it has them, their initial values, in place."""
    for sigma in sigmas_of(layer):
        sigma.fill_(SIGMA / math.sqrt(layer.in_features))


def factorized_noise(features: Tensor, weight_sigma: Tensor, bias_sigma: Tensor) -> Tensor:
    """Draw the term that noise adds to the output of a linear layer.

    Every call draws from PyTorch's default generator of the device, for each row by itself: environments
    explore independently of each other, and each update has noise of its own.

    Args:
        features: Inputs of the layer, ``(*batch, in_features)``.
        weight_sigma: Sigmas of the weight, ``(out_features, in_features)``.
        bias_sigma: Sigmas of the bias, ``(out_features,)``.

    Returns:
        The term, ``(*batch, out_features)``.
    """
    noise_in = _scaled(torch.randn_like(features))
    noise_out = _scaled(features.new_empty(*features.shape[:-1], len(bias_sigma)).normal_())
    return noise_out * F.linear(noise_in * features, weight_sigma, bias_sigma)


class NoisyLinear(nn.Linear):
    """A linear layer with noise in training mode, and without in evaluation mode.

    Args:
        in_features: Number of inputs.
        out_features: Number of outputs.
        bias: Whether the layer without noise has a bias.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.weight_sigma, self.bias_sigma = initial_sigmas(self)

    def reset_parameters(self) -> None:
        """Draw the weight and the bias as PyTorch does, and give the sigmas their initial values."""
        super().reset_parameters()
        reset_sigmas_(self)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        output = super().forward(features)
        if self.training:
            output = output + factorized_noise(features, self.weight_sigma, self.bias_sigma)
        return output


def make_noisy(module: nn.Module) -> None:
    """Replace every plain linear layer below a module by a noisy one with the same weights."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            noisy = NoisyLinear(child.in_features, child.out_features, child.bias is not None)
            noisy.weight, noisy.bias = child.weight, child.bias
            setattr(module, name, noisy)
        else:
            make_noisy(child)


def _scaled(noise: Tensor) -> Tensor:
    return noise.sign() * noise.abs().sqrt()
