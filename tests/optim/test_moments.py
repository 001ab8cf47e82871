"""What optimizers forget of parts of parameters, of whole ones, and of their count of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_gfs.errors import UserError
from lit_gfs.optim import Kron, MuonWithAdam
from lit_gfs.optim.moments import (
    forget_,
    kept_memory,
    require_adam,
    reset_adam_,
    reset_moments_,
)

Make = Callable[[Iterable[nn.Parameter]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "SGD": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Kron": lambda p: Kron(p, 0.01, seed=1),
    "MuonWithAdam": lambda p: MuonWithAdam(p, 0.01),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 6), (6,), (2, 6))
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def step(optimizer: Optimizer, chosen: list[nn.Parameter], times: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        for parameter in chosen:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def moments(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """Return all of a parameter's state that has its shape, but for Kron's preconditioners."""
    state: dict[str, Any] = optimizer.state[parameter]
    return [value for value in state.values() if isinstance(value, Tensor) and value.shape == parameter.shape]


@every_optimizer
def test_moments_become_0_at_the_chosen_entries_alone(make: Make) -> None:
    chosen = parameters()
    optimizer = make(chosen)
    step(optimizer, chosen, 3)
    weight = chosen[0]
    before = [moment.clone() for moment in moments(optimizer, weight)]
    others = [moment.clone() for other in chosen[1:] for moment in moments(optimizer, other)]
    is_reset = torch.zeros(6, 6, dtype=torch.bool)
    is_reset[2], is_reset[:, 4] = True, True

    reset_moments_(optimizer, {weight: is_reset, nn.Parameter(torch.zeros(2)): torch.ones(2).bool()})

    assert before
    for kept, moment in zip(before, moments(optimizer, weight), strict=True):
        assert (kept != 0).all()
        assert torch.equal(moment, torch.where(is_reset, 0, kept))
    after = [moment for other in chosen[1:] for moment in moments(optimizer, other)]
    assert all(torch.equal(*pair) for pair in zip(others, after, strict=True))


@every_optimizer
def test_an_optimizer_steps_on_after_a_partial_reset(make: Make) -> None:
    """Kron holds its state in stacks: the step must see the reset."""
    reset, plain = parameters(), parameters()
    first, second = make(reset), make(plain)
    for optimizer, chosen in ((first, reset), (second, plain)):
        step(optimizer, chosen, 3)
    reset_moments_(first, {reset[1]: torch.tensor([True] + [False] * 5)})
    for optimizer, chosen in ((first, reset), (second, plain)):
        step(optimizer, chosen, 1, seed=2)
    changed = reset[1] != plain[1]
    assert changed[0]
    if not isinstance(first, Kron):  # its preconditioner joins entries
        assert not changed[1:].any()


@every_optimizer
def test_a_parameter_that_is_forgotten_is_stepped_as_at_the_start(make: Make) -> None:
    chosen = parameters()
    optimizer = make(chosen)
    step(optimizer, chosen, 3)
    places = [moment.data_ptr() for moment in moments(optimizer, chosen[0])]
    factors = [factor.clone() for factor in optimizer.state[chosen[0]].get("Q", [])]

    forget_(optimizer, [chosen[0]])

    assert all(not moment.any() for moment in moments(optimizer, chosen[0]))
    assert [moment.data_ptr() for moment in moments(optimizer, chosen[0])] == places
    state, other = optimizer.state[chosen[0]], optimizer.state[chosen[1]]
    if "step" in state:
        assert float(state["step"]) == 0
        assert float(other["step"]) == 3
    if "Q" in state:
        assert all(torch.equal(*pair) for pair in zip(state["Q"], factors, strict=True))
    if "mu_product" in state:
        assert float(state["mu_product"]) == 1
    assert all(moment.any() for moment in moments(optimizer, chosen[1]))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("Kron", "SGD")])
def test_the_next_update_is_that_of_a_new_optimizer(name: str) -> None:
    chosen = parameters()
    optimizer = OPTIMIZERS[name](chosen)
    step(optimizer, chosen, 4)
    forget_(optimizer, chosen)
    fresh = [nn.Parameter(parameter.detach().clone()) for parameter in chosen]
    other = OPTIMIZERS[name](fresh)
    for each, its in ((optimizer, chosen), (other, fresh)):
        step(each, its, 3, seed=5)
    assert all(torch.equal(*pair) for pair in zip(chosen, fresh, strict=True))


def test_the_state_of_an_unknown_optimizer_is_left_or_deleted() -> None:
    chosen = parameters()
    optimizer = torch.optim.Adagrad(chosen, 0.01)
    step(optimizer, chosen, 2)
    before = optimizer.state[chosen[0]]["sum"].clone()
    reset_moments_(optimizer, {chosen[0]: torch.ones(6, 6, dtype=torch.bool)})
    assert torch.equal(optimizer.state[chosen[0]]["sum"], before)
    assert "its whole memory" in kept_memory(optimizer)
    forget_(optimizer, [chosen[0]])
    assert chosen[0] not in optimizer.state


def test_what_is_kept_is_told_of_kron_and_unknown_optimizers_alone() -> None:
    kept = {name: kept_memory(make(parameters())) for name, make in OPTIMIZERS.items()}
    assert "preconditioners" in kept.pop("Kron")
    assert set(kept.values()) == {""}


ADAMS = ("Adam", "AdamW, fused", "RAdam", "NAdam")


@pytest.mark.parametrize("name", ADAMS)
@pytest.mark.parametrize("mode", ["step", "moments"])
def test_adam_forgets_its_count_and_if_asked_its_moments(name: str, mode: Any) -> None:
    chosen = parameters()
    optimizer = OPTIMIZERS[name](chosen)
    step(optimizer, chosen, 5)
    before = [moment.clone() for moment in moments(optimizer, chosen[0])]
    counts = [optimizer.state[parameter]["step"] for parameter in chosen]

    reset_adam_(optimizer, mode)

    assert [float(count) for count in counts] == [0, 0, 0]  # the same tensors
    for kept, moment in zip(before, moments(optimizer, chosen[0]), strict=True):
        assert torch.equal(moment, kept if mode == "step" else torch.zeros_like(kept))


def test_adam_rel_limits_the_update_after_a_jump_of_the_gradient() -> None:
    """The numbers of the docstring, from the recursions of Adam in plain floats."""

    def longest(mode: str | None) -> float:
        parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = torch.optim.Adam([parameter], lr=1.0, eps=0.0)
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        state = optimizer.state[parameter]
        for name, value in (("exp_avg", 1.0), ("exp_avg_sq", 1.0), ("step", 1e6)):  # after long training
            state[name].fill_(value)
        if mode:
            reset_adam_(optimizer, mode)  # type: ignore[arg-type]
        updates = []
        parameter.grad.fill_(100.0)
        for _ in range(200):
            before = parameter.detach().clone()
            optimizer.step()
            updates.append(float((parameter.detach() - before).abs()))
        return max(updates)

    m, v, plain, relative = 1.0, 1.0, [], []
    for count in range(1, 201):
        m, v = 0.9 * m + 0.1 * 100, 0.999 * v + 0.001 * 100**2
        plain.append(m / v**0.5)
        relative.append(m / (1 - 0.9**count) / (v / (1 - 0.999**count)) ** 0.5)
    assert longest(None) == pytest.approx(max(plain)) == pytest.approx(6.6, abs=0.05)
    assert longest("step") == pytest.approx(max(relative)) == pytest.approx(1.04, abs=0.005)


def test_another_optimizer_is_refused_in_one_line() -> None:
    with pytest.raises(
        UserError, match=r"AdamResets resets the state of Adam, but the optimizer is SGD; exp"
    ):
        require_adam(OPTIMIZERS["SGD"](parameters()), "AdamResets")


def test_kron_learns_on_at_full_speed_after_a_reset_late_in_a_run() -> None:
    """From the identity, factors that are updated in every 34th step would need hundreds of steps."""
    chosen = [nn.Parameter(torch.zeros(8, 8)) for _ in range(2)]
    optimizer, draws = Kron(chosen, 1.0, pre_conditioner_update_probability=0.03, seed=0), torch.Generator()

    def rms_of_step() -> float:
        before = chosen[0].detach().clone()
        for parameter in chosen:
            parameter.grad = 0.01 * torch.randn(8, 8, generator=draws)
        optimizer.step()
        return float((chosen[0].detach() - before).square().mean().sqrt())

    for _ in range(3_000):
        late = rms_of_step()
    forget_(optimizer, [chosen[0]])
    assert [rms_of_step() for _ in range(20)][-1] > 0.5 * late
