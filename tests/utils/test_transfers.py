from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from lit_gfs.utils.transfers import fetch, send
from support.accelerator import ACCELERATOR

CPU, META, CUDA = torch.device("cpu"), torch.device("meta"), torch.device("cuda")


def test_what_is_there_already_stays_what_it_is() -> None:
    tensor = torch.ones(2)
    tensordict = TensorDict({"a": tensor}, [2], device=CPU)

    assert send(tensor, CPU) is tensor
    assert send(tensordict, CPU) is tensordict


def test_everything_moves_to_another_device() -> None:
    mixed = TensorDict({"a": torch.ones(2), "b": torch.ones(2, 3, device=META)}, [2])

    assert send(torch.ones(2), META).device == META
    sent = send(mixed, META)
    assert sent.device == META
    assert {part.device for part in sent.values()} == {META}
    assert sent["b"].shape == (2, 3)


@pytest.mark.parametrize("is_nested", [False, True])
def test_cuda_gets_page_locked_memory_and_is_not_waited_for(
    is_nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the calls, without a GPU."""
    calls: list[tuple[str, Any]] = []

    def pin_memory(self: Tensor) -> Tensor:
        calls.append(("pin_memory", self.tolist()))
        return self

    def to(self: Any, device: torch.device, *, non_blocking: bool) -> str:
        calls.append(("to", (device, non_blocking)))
        return "sent"

    kind = TensorDict if is_nested else Tensor
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(kind, "to", to)
    data: Any = torch.arange(2)
    if is_nested:
        data = TensorDict({"a": data, "next": TensorDict({"b": data + 2}, [2])}, [2])

    assert send(data, CUDA) == "sent"  # type: ignore[comparison-overlap]

    pinned = [[0, 1], [2, 3]] if is_nested else [[0, 1]]
    assert calls == [*(("pin_memory", numbers) for numbers in pinned), ("to", (CUDA, True))]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_values_arrive_on_a_gpu() -> None:
    sent = send(TensorDict({"a": torch.arange(1000.0)}, [1000]), torch.device("cuda", 0))

    assert torch.equal(sent["a"].cpu(), torch.arange(1000.0))


def test_a_tensor_is_fetched_while_the_device_goes_on() -> None:
    there = torch.arange(5.0).to("cuda" if ACCELERATOR == "cuda" else "cpu")

    wait = fetch(there)
    there = there * 2

    assert wait().tolist() == [0, 1, 2, 3, 4]
    assert wait().device == CPU
