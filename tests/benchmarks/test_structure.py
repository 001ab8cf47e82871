"""The profile of a transition sees the functions that it passes."""

from __future__ import annotations

import importlib
import json

import pytest

from lit_gfs.datamodules.replay import ReplayLoader

pytestmark = pytest.mark.usefixtures("empty_directory")


def test_a_transition_passes_environment_memory_and_update(capsys: pytest.CaptureFixture[str]) -> None:
    following = ReplayLoader.__next__

    importlib.import_module("structure").main(["--list"])

    assert ReplayLoader.__next__ is following
    answer = json.loads(capsys.readouterr().out)
    passed = set(answer["functions"])
    assert {
        "lit_gfs/agents/dqn.py: DQN.training_step",
        "lit_gfs/buffers/transitions.py: TransitionStorage.get",
        "lit_gfs/collectors/env_runner.py: EnvRunner.collect",
        "lit_gfs/envs/cartpole.py: CartPoleEnv._simulate",
        "lit_gfs/functional/returns.py: td_target",
    } <= passed
    assert answer["functions_of_a_transition"] == len(passed)
    assert answer["files_of_a_transition"] == len({name.partition(":")[0] for name in passed})
    assert "lit_gfs/agents/dqn.py" in answer["files_of_the_update"]
