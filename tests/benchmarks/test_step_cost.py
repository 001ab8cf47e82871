"""The benchmark of what interventions and monitors cost: that they do what is timed."""

from __future__ import annotations

import argparse
import importlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lightning.pytorch import Callback

from lit_gfs.plasticity.update_clipping import UpdateClipping
from lit_gfs.plasticity.weight_rule import Weights

PAIRS = 4
NETWORK = "mlp_2x256"


@pytest.fixture
def step_cost(empty_directory: Path) -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    yield importlib.import_module("step_cost")
    torch.set_num_threads(threads)


def arguments(*callbacks: str, clock: str = "wall") -> argparse.Namespace:
    return argparse.Namespace(
        callbacks=callbacks, pairs=PAIRS, clock=clock, accelerator="cpu", precision="32-true"
    )


def stand_in(step_cost: ModuleType, monkeypatch: pytest.MonkeyPatch, measurements: int = PAIRS) -> None:
    """Let steps take 2 seconds, and 2.2 to 2.8 with the callback."""

    def run(
        network: str, callbacks: list[Callback], given: argparse.Namespace
    ) -> tuple[object, Counter[str]]:
        switch = step_cost.Switch(callbacks, time.perf_counter)
        switch.on, switch.off = [2.2, 2.4, 2.6, 2.8], [2.0] * PAIRS
        return switch, Counter(dict.fromkeys(step_cost.MONITORS, measurements))

    monkeypatch.setattr(step_cost, "run", run)


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


def test_shares_by_hand(step_cost: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(step_cost, monkeypatch)
    periods = {name: kind.pace.interval(24_500) for name, kind in step_cost.MONITORS.items()}

    measured = step_cost.measure(NETWORK, arguments("nan_guard", "redo", *step_cost.MONITORS))

    rows = {row["what"]: row for row in measured}
    assert rows["nan_guard"]["share_of_step"] == pytest.approx(0.25)
    assert rows["nan_guard"]["step_ms"] == pytest.approx(2000)
    assert rows["redo"]["share_of_step"] == pytest.approx(0.25 / 1000)
    for name, period in periods.items():
        assert rows[name]["share_of_step"] == pytest.approx(0.25 / period)
    low, high = rows["all monitors"]["quartiles"]
    assert low < rows["all monitors"]["share_of_step"] < high
    assert low == pytest.approx(sum(rows[name]["quartiles"][0] for name in periods))


def test_there_is_no_sum_of_some_monitors(step_cost: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(step_cost, monkeypatch)

    assert [row["what"] for row in step_cost.measure(NETWORK, arguments("weights"))] == ["weights"]


def test_a_monitor_that_misses_one_step_is_an_error(
    step_cost: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(step_cost, monkeypatch, measurements=PAIRS - 1)

    with pytest.raises(RuntimeError, match="weights measured in 3 of 4"):
        step_cost.measure(NETWORK, arguments("weights"))


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_slow_steps_are_those_with_the_callback(step_cost: ModuleType, clock: str) -> None:
    class Slow(Callback):
        def on_train_batch_start(self, *arguments: object) -> None:
            time.sleep(0.2)

    switch, _ = step_cost.run(NETWORK, [Slow()], arguments(clock=clock))

    assert sorted(switch.off)[2] < 0.2  # one of four may be slow for another reason
    assert (sorted(switch.on)[1] > 0.2) == (clock == "wall"), "only the wall clock counts sleep"


def test_weights_are_remembered_in_every_other_step(
    step_cost: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Counted(UpdateClipping):
        def remember(self, weights: Weights) -> None:
            calls.append(1)
            super().remember(weights)

    callback = step_cost.UpdateClipping()
    monkeypatch.setattr(callback, "make_rule", Counted)
    step_cost.run(NETWORK, [callback], arguments())

    assert len(calls) == PAIRS + step_cost.WARMUP // 2


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
