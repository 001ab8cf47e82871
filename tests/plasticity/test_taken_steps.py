"""A step that only the device knows to be skipped is undone there, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_gfs.plasticity.taken_steps import has_gradients, skip_flag, undone_where


@pytest.mark.parametrize(("flag", "factor"), [(0.0, 3.0), (1.0, 1.0)])
def test_a_change_is_undone_where_the_flag_is_set(flag: float, factor: float) -> None:
    kept = [torch.randn(5), torch.randn(2, 3)]
    changed = [each.clone() for each in kept]
    with undone_where(torch.tensor(flag), changed):
        torch._foreach_mul_(changed, 3.0)
    assert all(torch.equal(*pair) for pair in zip(changed, [factor * each for each in kept], strict=True))


def test_without_a_flag_changes_stay() -> None:
    changed = [torch.ones(2)]
    with undone_where(None, changed):
        changed[0].mul_(3)
    assert torch.equal(changed[0], torch.full((2,), 3.0))


def test_the_flag_of_a_fused_optimizer_is_found() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    assert skip_flag(optimizer) is None
    vars(optimizer)["found_inf"] = torch.tensor([2.0])  # of two devices
    flag = skip_flag(optimizer)
    assert flag is not None
    assert torch.equal(flag, torch.tensor(1.0))


def test_one_gradient_is_enough() -> None:
    parameters = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    assert not has_gradients(parameters)
    parameters[1].grad = torch.zeros(1)
    assert has_gradients(parameters)
