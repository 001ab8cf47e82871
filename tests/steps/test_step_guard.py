"""Steps that are skipped by a flag that only the device knows, so that nothing waits for it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gfs.steps.step_guard import forget_skip, skip_step_where


class OnDevice:
    """Stands for a flag on another device; converting it to a Python value would wait for that device."""

    def __init__(self, flag: bool) -> None:
        self.value = torch.tensor(flag)
        self.device = torch.device("cuda")

    def __bool__(self) -> bool:
        raise AssertionError("read from the device")

    def float(self) -> Tensor:
        return self.value.float()


def stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, flag: bool) -> Tensor:
    before = parameter.detach().clone()
    parameter.grad = torch.full_like(parameter, math.nan if flag else 1.0)
    guard: Any = OnDevice(flag)
    skip_step_where(optimizer, guard)
    optimizer.step()
    return parameter.detach() - before


def test_a_fused_optimizer_skips_on_its_device() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], lr=0.1, fused=True)
    assert stepped(optimizer, parameter, False).abs().min() > 0.05
    state = {key: value.clone() for key, value in optimizer.state[parameter].items()}

    assert torch.equal(stepped(optimizer, parameter, True), torch.zeros(3))

    assert all(torch.equal(value, optimizer.state[parameter][key]) for key, value in state.items())
    assert stepped(optimizer, parameter, False).abs().min() > 0.05
    forget_skip(optimizer)
    assert not hasattr(optimizer, "found_inf")


def test_other_optimizers_get_a_gradient_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    monkeypatch.setattr(OnDevice, "__torch_function__", classmethod(unwrap), raising=False)

    assert torch.equal(stepped(optimizer, parameter, True), torch.zeros(3))
    assert torch.allclose(stepped(optimizer, parameter, False), torch.tensor(-0.1))


def unwrap(cls: type, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    values = [arg.value if isinstance(arg, OnDevice) else arg for arg in args]
    return function(*values, **(kwargs or {}))
