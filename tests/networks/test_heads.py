from __future__ import annotations

import pytest
import torch

from lit_gfs.errors import UserError
from lit_gfs.networks import LinearHead


@pytest.mark.parametrize("gain", [0.01, 1.0])
@pytest.mark.parametrize("outputs", [1, 6, 80])
def test_the_gain_is_every_singular_value(gain: float, outputs: int) -> None:
    head = LinearHead(64, outputs, gain)

    singular = torch.linalg.svdvals(head.weight.detach())

    torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=0)
    assert not head.bias.any()
    assert head(torch.randn(2, 3, 64)).shape == (2, 3, outputs)


def test_a_small_gain_starts_a_policy_close_to_uniform() -> None:
    policy = LinearHead(64, 4, gain=0.01)(torch.randn(1000, 64)).softmax(-1)

    assert (policy - 0.25).abs().max() < 0.02


def test_a_negative_gain_is_refused() -> None:
    with pytest.raises(UserError, match="got -1"):
        LinearHead(4, 2, gain=-1)
