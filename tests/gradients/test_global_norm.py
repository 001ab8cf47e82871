"""Against PyTorch's own clipping, bit by bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lit_gfs.gradients.global_norm import clip_global_norm


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 4.9, 5.1, 100.0])
@pytest.mark.parametrize("largest", [1.0, math.inf, math.nan])
def test_gradients_are_those_of_pytorch(max_norm: float, largest: float) -> None:
    generator = torch.Generator().manual_seed(1)
    ours = [torch.randn(shape, generator=generator) for shape in [(3, 2), (4,), ()]]
    length = torch.cat([each.flatten() for each in ours]).norm()
    ours = [5 * each / length for each in ours]
    ours[1][0] *= largest
    parameters = [nn.Parameter(torch.zeros_like(each)) for each in ours]
    for parameter, gradient in zip(parameters, ours, strict=True):
        parameter.grad = gradient.clone()

    clip_global_norm(ours, max_norm)
    nn.utils.clip_grad_norm_(parameters, max_norm)

    for mine, parameter in zip(ours, parameters, strict=True):
        assert torch.equal(mine.nan_to_num(7), parameter.grad.nan_to_num(7))  # type: ignore[union-attr]
