"""The comparison of numbers of processes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def processes() -> Any:
    return importlib.import_module("processes")


def test_a_ratio_is_that_of_a_round_to_the_first_kind_of_its_group(processes: Any) -> None:
    speeds = {
        "PPO, one process": [10.0, 20.0, 40.0],
        "PPO, two processes": [15.0, 20.0, 80.0],
        "PQN, one process": [1.0, 1.0, 1.0],
        "PQN, two processes": [3.0, 1.0, 2.0],
    }
    rows = {row["fit"]: row for row in processes.summary(speeds)}

    two = rows["PPO, two processes"]
    assert (two["median"], two["least"], two["most"]) == (20.0, 15.0, 80.0)
    assert (two["ratio"], two["least_ratio"], two["most_ratio"]) == (1.5, 1.0, 2.0)
    assert rows["PQN, two processes"]["ratio"] == 2.0
    assert {row["ratio"] for name, row in rows.items() if "one" in name} == {1.0}


@pytest.mark.slow
def test_a_fit_is_measured(processes: Any, tmp_path: Path) -> None:
    kinds = processes.kinds_of_remote(milliseconds=5.0)
    # Four environments that pause one after another.
    assert 20 < processes.speed(kinds["in the learner's process"], seconds=8) < 200
