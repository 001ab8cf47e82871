"""The profile of a transition sees the functions that it passes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"


def test_a_transition_passes_environment_memory_and_update() -> None:
    command = [sys.executable, str(BENCHMARKS / "structure.py"), "--list"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)

    answer = json.loads(process.stdout)
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
