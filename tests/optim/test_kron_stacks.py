"""Parameters of one shape are updated together; their state stays their own."""

from __future__ import annotations

import copy
import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gfs.optim import Kron

ARGUMENTS: dict[str, Any] = {
    "lr": 0.03,
    "pre_conditioner_update_probability": 0.5,
    "balance_prob": 0.5,
    "seed": 3,
}


def make() -> tuple[list[nn.Parameter], Kron]:
    """Three stacks: four matrices, three vectors and a scalar."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (4,), (3, 4), (3, 4), (4,), (), (4,), (3, 4)]
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    return parameters, Kron(parameters, **ARGUMENTS)


def train(parameters: list[nn.Parameter], optimizer: Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator) + parameter.detach()
        optimizer.step()


def assert_same(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our, their)


class CountOperations(TorchDispatchMode):
    """Counts the operators that are called, and keeps the shapes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.products: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls[func.__name__.split(".")[0]] += 1
        if func.__name__.startswith("bmm"):
            self.products.append(tuple(result.shape))
        return result


def test_an_ordinary_step_is_two_products_for_all_layers_of_one_shape() -> None:
    layers = nn.Sequential(*[nn.Linear(6, 6) for _ in range(5)])
    optimizer = Kron(layers.parameters(), pre_conditioner_update_probability=0.5)
    for _ in range(3):  # the second step updates the factors
        layers(torch.randn(2, 6)).sum().backward()
        optimizer.step()

    with CountOperations() as counted:
        optimizer.param_groups[0]["pre_conditioner_update_probability"] = 0.0
        optimizer.step()

    assert counted.products == [(5, 6, 6), (5, 6, 6)]
    unwanted = {"mm", "addmm", "baddbmm", "linalg_solve_triangular", "_local_scalar_dense", "stack", "clone"}
    assert not unwanted & counted.calls.keys()


def test_stacking_changes_no_value() -> None:
    """Parameters in one group each, so alone in their stacks, move as those that share one."""
    together, shared = make()
    apart, _ = make()
    alone = Kron([{"params": [parameter]} for parameter in apart], **ARGUMENTS)

    train(together, shared, 0, 9)
    train(apart, alone, 0, 9)

    for ours, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)


def test_the_state_is_each_parameters_own() -> None:
    parameters, optimizer = make()
    train(parameters, optimizer, 0, 4)
    state = optimizer.state_dict()["state"]

    assert list(state) == list(range(len(parameters)))
    for index, parameter in enumerate(parameters):
        assert state[index].keys() == {"momentum_buffer", "Q"}
        assert state[index]["momentum_buffer"].shape == parameter.shape
        sizes = parameter.shape or [()]
        expected = [(size, size) if parameter.dim() > 1 else parameter.shape for size in sizes]
        assert [tuple(factor.shape) for factor in state[index]["Q"]] == expected

    saved, plain = io.BytesIO(), io.BytesIO()
    torch.save(state, saved)
    torch.save(_cloned(state), plain)
    assert saved.tell() <= plain.tell()


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    return [_cloned(item) for item in value]


def replace_states(parameters: list[nn.Parameter], optimizer: Kron) -> None:
    """What a move of the optimizer to another device does."""
    for parameter, state in list(optimizer.state.items()):
        optimizer.state[parameter] = _cloned(state)


def replace_tensors(parameters: list[nn.Parameter], optimizer: Kron) -> None:
    for state in optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].clone()


def replace_factors(parameters: list[nn.Parameter], optimizer: Kron) -> None:
    for state in optimizer.state.values():
        state["Q"][:] = _cloned(state["Q"])


def reload(parameters: list[nn.Parameter], optimizer: Kron) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def add_an_idle_group(parameters: list[nn.Parameter], optimizer: Kron) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, 4))]})


@pytest.mark.parametrize(
    "change",
    [
        replace_states,
        replace_tensors,
        replace_factors,
        reload,
        add_an_idle_group,
    ],
)
def test_what_happens_to_the_state_is_followed(change: Callable[[list[nn.Parameter], Kron], None]) -> None:
    parameters, optimizer = make()
    expected, undisturbed = make()
    train(expected, undisturbed, 0, 9)

    train(parameters, optimizer, 0, 3)
    change(parameters, optimizer)
    train(parameters, optimizer, 3, 9)

    assert_same(parameters, expected)
    for ours, theirs in zip(parameters, expected, strict=True):
        for mine, other in zip(optimizer.state[ours]["Q"], undisturbed.state[theirs]["Q"], strict=True):
            assert torch.equal(mine, other)


def test_a_shallow_copy_shares_the_state() -> None:
    parameters, optimizer = make()
    expected, undisturbed = make()
    train(expected, undisturbed, 0, 9)

    train(parameters, optimizer, 0, 3)
    train(parameters, copy.copy(optimizer), 3, 6)
    train(parameters, optimizer, 6, 9)

    assert_same(parameters, expected)


def test_factors_that_were_written_to_precondition_the_next_step() -> None:
    parameters, optimizer = make()
    twins, twin = make()
    train(parameters, optimizer, 0, 3)
    train(twins, twin, 0, 3)
    optimizer.state[parameters[2]]["Q"][0].mul_(0.1)

    for those, one in ((parameters, optimizer), (twins, twin)):
        one.param_groups[0]["pre_conditioner_update_probability"] = 0.0
        train(those, one, 3, 4)

    equal = [torch.equal(ours, theirs) for ours, theirs in zip(parameters, twins, strict=True)]
    assert equal == [index != 2 for index in range(len(parameters))]


def test_a_cleared_state_begins_again() -> None:
    parameters, optimizer = make()
    train(parameters, optimizer, 0, 3)
    optimizer.state.clear()
    optimizer.param_groups[0].update(step=0, update_counter=0)
    fresh, other = make()
    with torch.no_grad():
        for parameter, start in zip(fresh, parameters, strict=True):
            parameter.copy_(start)

    train(parameters, optimizer, 3, 6)
    train(fresh, other, 3, 6)

    assert_same(parameters, fresh)


def test_parameters_that_left_their_group_stand_still() -> None:
    parameters, optimizer = make()
    train(parameters, optimizer, 0, 3)
    removed = [optimizer.param_groups[0]["params"].pop(index) for index in (5, 3)]
    before = [parameter.detach().clone() for parameter in removed]

    train(parameters, optimizer, 3, 6)

    for parameter, value in zip(removed, before, strict=True):
        assert torch.equal(parameter.detach(), value)


def test_the_order_within_a_group_may_change() -> None:
    parameters, optimizer = make()
    expected, undisturbed = make()
    for one in (optimizer, undisturbed):
        train(parameters if one is optimizer else expected, one, 0, 3)
        one.param_groups[0]["pre_conditioner_update_probability"] = 0.0  # draws follow the order
    optimizer.param_groups[0]["params"].reverse()

    train(parameters, optimizer, 3, 6)
    train(expected, undisturbed, 3, 6)

    assert_same(parameters, expected)


@pytest.mark.parametrize("saved_at", [2, 5])
def test_it_resumes_bit_for_bit_with_gradients_missing(saved_at: int) -> None:
    def train_some(parameters: list[nn.Parameter], optimizer: Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            for index, parameter in enumerate(parameters):
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = None if (index + step) % 3 == 0 or step < index - 3 else gradient
            optimizer.step()

    whole, optimizer = make()
    train_some(whole, optimizer, 0, saved_at)
    state = copy.deepcopy(optimizer.state_dict())
    resumed, restored = make()
    with torch.no_grad():
        for parameter, value in zip(resumed, whole, strict=True):
            parameter.copy_(value)
    restored.load_state_dict(state)

    train_some(whole, optimizer, saved_at, 12)
    train_some(resumed, restored, saved_at, 12)

    assert_same(whole, resumed)
