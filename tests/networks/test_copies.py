from __future__ import annotations

import copy

import torch
from torch import nn

from lit_gfs.networks import frozen, move_towards_


def test_a_copy_moves_by_its_share_and_takes_the_buffers() -> None:
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    target = copy.deepcopy(source)
    before = [parameter.clone() for parameter in target.parameters()]
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    source[1].running_mean.fill_(5)  # type: ignore[operator, union-attr]

    move_towards_(target, source, 0.25)

    for was, now in zip(before, target.parameters(), strict=True):
        torch.testing.assert_close(now, was + 0.25)
    assert torch.equal(target[1].running_mean, torch.full((2,), 5.0))  # type: ignore[arg-type]
    move_towards_(target, source, 1.0)
    for theirs, ours in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(theirs, ours)


def test_gradients_pass_through_a_frozen_module_and_do_not_reach_it() -> None:
    module, x = nn.Linear(3, 1), torch.randn(4, 3, requires_grad=True)
    module.bias.requires_grad_(False)

    with frozen(module):
        output = module(x).sum()
    output.backward()

    torch.testing.assert_close(x.grad, module.weight.detach().expand(4, 3))
    assert module.weight.grad is None
    assert module.weight.requires_grad
    assert not module.bias.requires_grad


def test_a_module_thaws_after_an_error() -> None:
    module = nn.Linear(3, 1)
    try:
        with frozen(module):
            raise RuntimeError
    except RuntimeError:
        pass
    assert all(parameter.requires_grad for parameter in module.parameters())
