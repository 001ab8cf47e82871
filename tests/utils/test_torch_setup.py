from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from lit_gfs.utils.torch_setup import MatmulPrecision, set_matmul_precision, set_threads

SMALL, LARGE = nn.Linear(10, 10), nn.Linear(1_000, 1_000)


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(("module", "expected"), [(SMALL, 1), (LARGE, 2)])
def test_small_networks_get_one_thread(module: nn.Module, expected: int) -> None:
    set_threads(None, module)

    assert torch.get_num_threads() == expected


def test_a_request_wins() -> None:
    set_threads(3, SMALL)

    assert torch.get_num_threads() == 3


def test_the_environment_is_left_in_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    set_threads(None, SMALL)

    assert torch.get_num_threads() == 2


@pytest.fixture
def _precision_restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_precision_restored")
@pytest.mark.parametrize(
    ("precision", "on_cpu"), [("highest", "highest"), ("high", "highest"), ("medium", "medium")]
)
def test_high_precision_is_the_highest_on_a_cpu(precision: MatmulPrecision, on_cpu: str) -> None:
    set_matmul_precision(precision, torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == on_cpu

    set_matmul_precision(precision, torch.device("cuda"))
    assert torch.get_float32_matmul_precision() == precision
