"""The benchmark of what interventions and monitors cost: that they do what is timed."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

PAIRS = 4
NETWORK = "mlp_2x256"


@pytest.fixture
def step_cost(empty_directory: Path) -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    yield importlib.import_module("step_cost")
    torch.set_num_threads(threads)


def arguments(*callbacks: str) -> argparse.Namespace:
    return argparse.Namespace(
        callbacks=callbacks, pairs=PAIRS, clock="wall", accelerator="cpu", precision="32-true"
    )


@pytest.mark.parametrize("name", ["gradient_flow", "representation", "curvature", "weights"])
def test_a_monitor_measures_in_every_step_in_which_it_is_on(step_cost: ModuleType, name: str) -> None:
    switch, written = step_cost.run(NETWORK, [step_cost.MONITORS[name](every_n_steps=1)], arguments())

    assert len(switch.on) == len(switch.off) == PAIRS
    # In every other step of the warm-up too.
    assert written[name] == PAIRS + step_cost.WARMUP // 2


def test_a_change_of_weights_is_off_in_every_other_step(step_cost: ModuleType) -> None:
    (callback,) = step_cost.INTERVENTIONS["pull_to_init"]()
    switch, _ = step_cost.run(NETWORK, [callback], arguments())

    assert len(switch.on) == len(switch.off) == PAIRS
    assert callback.state_dict()["steps"] == [PAIRS + step_cost.WARMUP // 2]


def test_a_monitor_that_measures_nothing_is_an_error(
    step_cost: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_cost.DQN, "on_collection_end", lambda agent, experience: None)

    with pytest.raises(RuntimeError, match="representation measured in 0 of 4 steps"):
        step_cost.measure(NETWORK, arguments("representation"))


def test_a_term_of_the_loss_is_there_in_every_other_step(step_cost: ModuleType) -> None:
    calls: list[int] = []

    class Counted(step_cost.L2Init):  # type: ignore[name-defined, misc]
        def term(self) -> torch.Tensor:
            calls.append(1)
            return super().term()

    switch, _ = step_cost.run(NETWORK, [Counted()], arguments())

    assert len(switch.on) == len(switch.off) == PAIRS
    assert len(calls) == PAIRS + step_cost.WARMUP // 2


def test_the_table_says_how_it_was_measured(step_cost: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"

    options = ["--networks", NETWORK, "--callbacks", "both", "nan_guard", "--pairs", "4", "--clock", "cpu"]
    step_cost.main([*options, "--markdown", str(page)])

    text = page.read_text()
    assert f"`python benchmarks/step_cost.py {' '.join(options)} --markdown {page}`: 1 thread" in text
    assert [line.split(" | ")[1] for line in text.splitlines() if line.startswith(f"| {NETWORK}")] == [
        "both",
        "nan_guard",
    ]
