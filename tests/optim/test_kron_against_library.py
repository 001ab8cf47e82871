"""Kron's updates against those of ``pytorch_optimizer.Kron``, which takes one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_gfs.optim import Kron
from lit_gfs.utils.seeding import derive_seed

SHAPES = [(6, 6), (6,), (5, 7), (), (6, 6), (1, 5), (6,), (4, 3, 2, 2), (9, 1), (7, 5), (2, 3, 4), (5, 7)]
SHAPES += [(4, 3, 2, 2), (6, 6), (), (11,), (1,)]
Edit = Callable[[Optimizer, list[nn.Parameter], int], None]


class LibraryKron(pytorch_optimizer.Kron):
    """The library's optimizer, with the draws that are promised of ours."""

    def step(self, closure: Any = None) -> Any:
        seed = derive_seed("kron", 3, self.param_groups[0].get("step", 0))
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        return super().step(closure)


def make_parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def train(
    parameters: list[nn.Parameter], optimizer: Optimizer, last: int, edit: Edit | None = None, first: int = 0
) -> None:
    """Give each parameter a gradient of its own scale and direction, with noise, and step."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 + step)
        for index, parameter in enumerate(parameters):
            noise = torch.randn(parameter.shape, generator=generator)
            slope = torch.linspace(0.2, 3.0, parameter.numel()).view(parameter.shape)
            gradient = (1 + index) * (slope * noise + 0.3 * parameter.detach().float())
            parameter.grad = gradient.to(parameter.dtype)
        if edit is not None:
            edit(optimizer, parameters, step)
        optimizer.step()


def assert_alike(
    ours: tuple[list[nn.Parameter], Optimizer],
    theirs: tuple[list[nn.Parameter], Optimizer],
    **tolerance: float,
) -> None:
    for our, their in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(our.detach(), their.detach(), **tolerance)
        our_state, their_state = ours[1].state.get(our), theirs[1].state.get(their)
        assert (our_state is None) == (their_state is None)
        if our_state is not None and their_state is not None:
            pairs = zip(our_state["Q"], their_state["Q"], strict=True)
            for mine, other in [(our_state["momentum_buffer"], their_state["momentum_buffer"]), *pairs]:
                assert mine.dtype == other.dtype
                torch.testing.assert_close(mine, other, **tolerance)


def compare(
    arguments: dict[str, Any],
    edit: Edit | None = None,
    dtype: torch.dtype = torch.float32,
    steps: int = 8,
    **tolerance: float,
) -> list[nn.Parameter]:
    in_library = {
        key: getattr(torch, value) if key.endswith("dtype") and value else value
        for key, value in arguments.items()
    }
    ours, theirs = make_parameters(dtype), make_parameters(dtype)
    our_optimizer = Kron(ours, **{"lr": 0.03, "seed": 3, **arguments})
    their_optimizer = LibraryKron(theirs, **{"lr": 0.03, **in_library})
    train(ours, our_optimizer, steps, edit)
    train(theirs, their_optimizer, steps, edit)
    for our, start in zip(ours, make_parameters(dtype), strict=True):
        assert not torch.equal(our.detach(), start.detach())
    assert_alike((ours, our_optimizer), (theirs, their_optimizer), **(tolerance or CLOSE))
    return ours


CLOSE = {"rtol": 2e-4, "atol": 2e-5}
COARSE = {"rtol": 0.05, "atol": 0.05}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_size_triangular": 5},
        {"min_ndim_triangular": 1},
        {"min_ndim_triangular": 3},
        {"memory_save_mode": "one_diag"},
        {"memory_save_mode": "smart_one_diag"},
        {"memory_save_mode": "all_diag"},
        {"momentum_into_precondition_update": False},
        {"momentum_into_precondition_update": False, "weight_decay": 0.3, "weight_decouple": False},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "weight_decouple": False},
        {"momentum": 0.5},
        {"momentum": 0.0},
        {"balance_prob": 1.0, "pre_conditioner_update_probability": 0.5},
        {"balance_prob": 0.4},
        {"pre_conditioner_update_probability": 0.4},
        {"pre_conditioner_update_probability": 0.0},
    ],
    ids=str,
)
def test_updates_and_state_are_the_librarys(arguments: dict[str, Any]) -> None:
    compare(arguments)


@pytest.mark.parametrize(
    ("dtype", "arguments", "tolerance"),
    [
        (torch.float32, {"mu_dtype": "bfloat16"}, COARSE),
        (torch.float32, {"precondition_dtype": "bfloat16"}, COARSE),
        (torch.float32, {"precondition_dtype": None}, CLOSE),
        (torch.float64, {}, CLOSE),
        (torch.float64, {"precondition_dtype": None}, CLOSE),
        (torch.bfloat16, {}, COARSE),
        (torch.bfloat16, {"precondition_dtype": None}, COARSE),
    ],
)
def test_precisions_are_the_librarys(
    dtype: torch.dtype, arguments: dict[str, Any], tolerance: dict[str, float]
) -> None:
    # Few steps: the rounding of coarse factors grows from one update to the next.
    compare(arguments, dtype=dtype, steps=4, **tolerance)


def test_the_learning_rate_may_change_in_the_middle() -> None:
    def decay(optimizer: Optimizer, parameters: list[nn.Parameter], step: int) -> None:
        if step == 4:
            optimizer.param_groups[0]["lr"] = 0.001

    changed = compare({}, edit=decay)
    unchanged = make_parameters()
    train(unchanged, Kron(unchanged, lr=0.03, seed=3), 8)
    assert not torch.allclose(changed[0], unchanged[0], atol=1e-2)


@pytest.mark.parametrize("probability", [1.0, 0.3])
def test_parameters_without_a_gradient_stand_still_as_in_the_library(probability: float) -> None:
    """Some rows of a stack, all rows, and parameters whose first gradient comes late."""

    def drop(optimizer: Optimizer, parameters: list[nn.Parameter], step: int) -> None:
        for index, parameter in enumerate(parameters):
            if (index + step) % 4 == 0 or (step < 5 and index in (4, 6)) or (step == 9 and index < 8):
                parameter.grad = None

    compare({"pre_conditioner_update_probability": probability, "balance_prob": 0.5}, edit=drop, steps=12)


def test_groups_keep_their_own_settings_and_may_come_later() -> None:
    def run(make: Callable[[Any], Optimizer]) -> tuple[list[nn.Parameter], Optimizer]:
        parameters = make_parameters()
        optimizer = make(
            [
                {"params": parameters[:5], "lr": 0.01, "momentum": 0.8, "precondition_init_scale": 2.0},
                {"params": parameters[5:9], "weight_decay": 0.2, "memory_save_mode": "all_diag"},
            ]
        )
        train(parameters[:9], optimizer, 4)
        optimizer.add_param_group({"params": parameters[9:], "lr": 0.1, "weight_decay": 0.1})
        train(parameters, optimizer, 10, first=4)
        return parameters, optimizer

    ours, theirs = (
        run(lambda groups: Kron(groups, lr=0.03, seed=3)),
        run(lambda groups: LibraryKron(groups, lr=0.03)),
    )

    assert [group["step"] for group in ours[1].param_groups] == [10, 10, 6]
    assert_alike(ours, theirs, **CLOSE)


@pytest.mark.parametrize(
    ("probability", "first", "updates"),
    [
        (None, 0, 550),
        (None, 450, 325),
        (None, 3_700, 19),
        (1.0, 0, 600),
        (0.3, 0, 150),
        (0.07, 9, 40),
        (0.0, 0, 0),
    ],
)
def test_the_schedule_is_the_librarys(probability: float | None, first: int, updates: int) -> None:
    idle = nn.Parameter(torch.zeros(()))
    idle.grad = torch.ones(())
    ours = Kron([idle], pre_conditioner_update_probability=probability)
    theirs = pytorch_optimizer.Kron([idle], pre_conditioner_update_probability=probability)
    ours.param_groups[0]["step"] = theirs.param_groups[0]["step"] = first
    counters: list[int] = []
    for _ in range(600):
        ours.step()
        theirs.step()
        counters.append(ours.param_groups[0]["update_counter"])
        assert counters[-1] == theirs.param_groups[0]["update_counter"]
    assert counters.count(0) == updates


def test_a_deep_network_has_the_librarys_losses() -> None:
    def losses(make: Callable[[Any], Optimizer]) -> list[float]:
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(8, 24), nn.ReLU()]
        for _ in range(5):
            layers += [nn.Linear(24, 24), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Linear(24, 3))
        for layer in net[::2]:
            nn.init.orthogonal_(layer.weight, 2**0.5)
        optimizer = make(net.parameters())
        inputs: Tensor = torch.randn(32, 8)
        history = []
        for _ in range(40):
            loss = (net(inputs) - inputs[:, :3].sin()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        return history

    ours = losses(lambda parameters: Kron(parameters, lr=0.02, seed=3))
    theirs = losses(lambda parameters: LibraryKron(parameters, lr=0.02))

    assert ours == pytest.approx(theirs, rel=2e-3)
    assert ours[-1] < 0.5 * ours[0]
