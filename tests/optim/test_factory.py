from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lit_gfs.optim import Kron
from lit_gfs.optim.factory import make_optimizer
from lit_gfs.steps.step_guard import can_skip_exactly


def steps(optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("Adam", "fused"), ("AdamW", "fused"), ("SGD", "fused"), ("RAdam", "foreach"), ("RMSprop", "foreach")],
)
def test_the_quick_implementation_gives_the_same_updates(name: str, implementation: str) -> None:
    factory = getattr(torch.optim, name)
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    looped = copy.deepcopy(network)

    optimizer = make_optimizer(lambda p: factory(p, lr=0.1), network.parameters())
    steps(optimizer)
    steps(factory(looped.parameters(), lr=0.1, foreach=False))

    assert optimizer.param_groups[0][implementation] is True
    for ours, expected in zip(network.parameters(), looped.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("name", "exactly"), [("Adam", True), ("SGD", True), ("RMSprop", False)])
def test_on_a_gpu_its_steps_are_skipped_exactly_where_a_kernel_can(name: str, exactly: bool) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = make_optimizer(lambda p: getattr(torch.optim, name)(p, lr=0.1), [parameter])
    assert can_skip_exactly(optimizer, torch.device("cuda")) == exactly

    if exactly:
        # What `skip_step_where` leaves there for the kernel to read.
        vars(optimizer).update(found_inf=torch.ones(()), grad_scale=None)
        parameter.grad = torch.ones(3)
        optimizer.step()
        assert parameter.eq(0).all()


@pytest.mark.parametrize("chosen", [{"foreach": False}, {"foreach": True}, {"fused": False}])
def test_an_implementation_that_the_user_chose_stays(chosen: dict[str, Any]) -> None:
    parameters = nn.Linear(2, 2).parameters()

    optimizer = make_optimizer(lambda p: torch.optim.Adam(p, **chosen), parameters)

    assert {key: optimizer.param_groups[0][key] for key in chosen} == chosen
    assert optimizer.param_groups[0]["fused"] is not True


def test_optimizers_of_others_are_left_alone() -> None:
    optimizer = make_optimizer(Kron, nn.Linear(2, 2).parameters())

    assert not {"fused", "foreach"} & set(optimizer.param_groups[0])


def test_hooks_and_profilers_see_a_step() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = make_optimizer(lambda p: torch.optim.Adam(p, lr=0.1), [parameter])
    LambdaLR(optimizer, lambda _: 1.0)  # wraps the step once more
    seen: list[str] = []

    def step(note: str) -> None:
        parameter.grad = torch.ones(3)
        optimizer.step()
        seen.append(note)

    step("plain")
    with torch.autograd.profiler.profile() as profile:
        step("profiled")
    assert "Optimizer.step#Adam.step" in {event.key for event in profile.key_averages()}
    for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
        handle = register(lambda *arguments: seen.append("hook"))
        step("hooked")
        handle.remove()
    for register in (register_optimizer_step_pre_hook, register_optimizer_step_post_hook):
        handle = register(lambda *arguments: seen.append("hook"))
        step("hooked")
        handle.remove()
    step("plain")
    assert seen == ["plain", "profiled", *["hook", "hooked"] * 4, "plain"]
    assert copy.deepcopy(optimizer).state_dict().keys() == optimizer.state_dict().keys()


def test_a_plain_step_leaves_the_profilers_entry_out(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = make_optimizer(lambda p: torch.optim.Adam(p, lr=0.1), [parameter])
    parameter.grad = torch.ones(3)

    def refuse(*arguments: Any) -> None:
        raise AssertionError("an entry for the profiler")

    monkeypatch.setattr(torch.autograd.profiler, "record_function", refuse)
    optimizer.step()
    assert parameter.lt(0).all()
