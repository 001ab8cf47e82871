"""Captured functions and losses compute the same as without a graph, on a CPU by the same path."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from lit_gfs.utils.cuda_graphs import MAX_SHAPES, CannotCapture, GraphedFunction, GraphedLoss

DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
on_every_device = pytest.mark.parametrize("device", DEVICES, ids=str)


def network(device: torch.device) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(device)


def batch(device: torch.device, seed: int = 0, size: int = 16) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    content = {
        "observation": torch.randn(size, 4, generator=generator),
        "next": {"target": torch.randn(size, 2, generator=generator)},
    }
    return TensorDict(content, batch_size=[size]).to(device)


def loss_of(module: nn.Module) -> Callable[[TensorDict], tuple[Tensor, dict[str, Tensor]]]:
    def loss(values: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        error = module(values["observation"]) - values["next", "target"]
        return error.square().mean(), {"error": error}

    return loss


def graphed(module: nn.Module, device: torch.device) -> GraphedLoss:
    def state() -> list[Tensor]:
        return [*module.parameters(), *module.buffers()]

    return GraphedLoss(loss_of(module), module.parameters, device, state)


def gradients(module: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in module.parameters()]
    assert all(each is not None for each in found)
    return found  # type: ignore[return-value]


@on_every_device
def test_a_graphed_loss_trains_as_the_loss_itself(device: torch.device) -> None:
    ours, reference = network(device), network(device)
    replayed = graphed(ours, device)
    optimizers = [torch.optim.Adam(module.parameters(), lr=0.1) for module in (ours, reference)]

    for step in range(5):
        loss, named = replayed(batch(device, step))
        expected, expected_named = loss_of(reference)(batch(device, step))
        for value, optimizer in zip((loss, expected), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(named["error"], expected_named["error"])
        torch.testing.assert_close(gradients(ours), gradients(reference))
    torch.testing.assert_close(list(ours.parameters()), list(reference.parameters()))


@on_every_device
def test_what_a_call_returned_outlives_the_next_call(device: torch.device) -> None:
    module = network(device)
    replayed = graphed(module, device)
    loss, named = replayed(batch(device, 0))
    loss.backward()
    kept = [each.clone() for each in (loss, named["error"], *gradients(module))]

    replayed(batch(device, 1))

    torch.testing.assert_close([loss, named["error"], *gradients(module)], kept, rtol=0, atol=0)


@on_every_device
def test_gradients_are_scaled_and_accumulated(device: torch.device) -> None:
    module, reference = network(device), network(device)
    replayed = graphed(module, device)
    for step in range(2):
        (replayed(batch(device, step))[0] * 64).backward()
        (loss_of(reference)(batch(device, step))[0] * 64).backward()

    torch.testing.assert_close(gradients(module), gradients(reference))


@on_every_device
def test_a_parameter_without_influence_has_no_gradient(device: torch.device) -> None:
    module = network(device)
    idle = nn.Parameter(torch.ones(3, device=device))
    everything = [*module.parameters(), idle]
    replayed = GraphedLoss(loss_of(module), lambda: everything, device, lambda: everything)

    replayed(batch(device))[0].backward()

    assert idle.grad is None
    assert gradients(module)


@on_every_device
def test_every_shape_is_captured(device: torch.device) -> None:
    module, reference = network(device), network(device)
    replayed = graphed(module, device)

    for size in (16, 8, 16, 4, 8):
        expected = loss_of(reference)(batch(device, size, size))[0]
        torch.testing.assert_close(replayed(batch(device, size, size))[0], expected)

    for size in range(100, 100 + MAX_SHAPES - 3):  # three have been captured
        replayed(batch(device, 0, size))
    with pytest.raises(CannotCapture, match=f"more than {MAX_SHAPES} shapes"):
        replayed(batch(device, 0, 200))


@on_every_device
def test_weights_that_have_moved_are_seen(device: torch.device) -> None:
    module = network(device)
    replayed = graphed(module, device)
    replayed(batch(device))
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), other.parameters(), strict=True):
            parameter.data = value + 1

    torch.testing.assert_close(replayed(batch(device))[0], loss_of(module)(batch(device))[0])


@on_every_device
def test_a_capture_leaves_buffers_and_generators_as_one_call_would(device: torch.device) -> None:
    modules = [
        nn.Sequential(network(device), nn.BatchNorm1d(2), nn.Dropout(0.5)).to(device) for _ in range(2)
    ]
    after = []
    for module, use_graph in zip(modules, (True, False), strict=True):
        torch.manual_seed(1)
        loss = graphed(module, device) if use_graph else loss_of(module)
        losses = [loss(batch(device, step))[0].detach() for step in range(3)]
        after.append((losses, list(module.buffers()), torch.rand(3, device=device)))

    torch.testing.assert_close(after[0], after[1])


def test_a_loss_that_depends_on_the_number_of_calls_is_refused() -> None:
    module, calls = network(DEVICES[0]), []

    def loss(values: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append(1)
        value, named = loss_of(module)(values)
        return value * len(calls), named

    replayed = GraphedLoss(loss, module.parameters, DEVICES[0], lambda: list(module.parameters()))

    with pytest.raises(CannotCapture, match="a replay differs from an ordinary call"):
        replayed(batch(DEVICES[0]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU has no stream to wait for")
def test_a_loss_that_waits_for_the_device_is_refused() -> None:
    module = network(DEVICES[-1])

    def loss(values: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        value, named = loss_of(module)(values)
        return value * float(value), named

    with pytest.raises(CannotCapture):
        GraphedLoss(loss, module.parameters, DEVICES[-1], lambda: list(module.parameters()))(
            batch(DEVICES[-1])
        )


@on_every_device
def test_a_graphed_policy_acts_as_the_policy_itself(device: torch.device) -> None:
    module = network(device)

    def act(inputs: dict[str, Any]) -> dict[str, Tensor]:
        values = module(inputs["observation"])
        random = torch.rand(len(values), device=device) < inputs["epsilon"]
        return {"action": torch.where(random, 7, values.argmax(-1)), "value": values.amax(-1)}

    def played(function: Callable[[dict[str, Any]], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        torch.manual_seed(3)
        return [
            function(
                {
                    "observation": batch(device, step)["observation"],
                    "epsilon": 0.1 * step,
                }
            )
            for step in range(10)
        ]

    with torch.no_grad():
        expected = played(act)
        ours = played(GraphedFunction(act, device, lambda: list(module.parameters())))

    torch.testing.assert_close(ours, expected)
    assert any((each["action"] == 7).any() for each in ours)


def test_an_input_that_is_neither_a_tensor_nor_a_float_is_refused() -> None:
    function = GraphedFunction(lambda inputs: {"same": inputs["observation"]}, DEVICES[0], list)

    with pytest.raises(CannotCapture, match="an input is a str"):
        function({"observation": torch.zeros(2), "name": "acrobot"})
