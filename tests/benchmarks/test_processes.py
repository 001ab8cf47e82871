"""The comparison of numbers of processes."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


@pytest.fixture
def processes() -> Any:
    return importlib.import_module("processes")


def test_a_ratio_is_that_of_a_round_to_the_first_kind_of_its_group(processes: Any) -> None:
    wall = {
        "PPO, one process": [10.0, 20.0, 40.0],
        "PPO, two processes": [15.0, 20.0, 80.0],
        "PQN, one process": [1.0, 1.0, 1.0],
        "PQN, two processes": [3.0, 1.0, 2.0],
    }
    speeds = {name: [{"wall": each, "cpu": 2 * each} for each in values] for name, values in wall.items()}
    rows = {row["fit"]: row for row in processes.summary(speeds)}

    two = rows["PPO, two processes"]
    assert two["wall"] == {"speed": 20.0, "ratio": 1.5, "least": 1.0, "most": 2.0}
    assert two["cpu"] == {"speed": 40.0, "ratio": 1.5, "least": 1.0, "most": 2.0}
    assert rows["PQN, two processes"]["wall"]["ratio"] == 2.0
    assert {row["wall"]["ratio"] for name, row in rows.items() if "one" in name} == {1.0}


@pytest.mark.slow
def test_a_fit_is_measured(processes: Any) -> None:
    kinds = processes.kinds_of_remote(milliseconds=5.0)
    # Four environments that pause one after another.
    assert 10 < processes.speeds_of(kinds["PPO, in its own process"], rollouts=3)["wall"] < 200
