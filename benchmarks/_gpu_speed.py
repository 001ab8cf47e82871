"""How fast `fit` trains on the available accelerator, and what single options change: rows of throughput.py.

Rows of one group differ in a single option. Each prints its steps per second, its speed by the limit of the
machine, and its speed by that of the group's first row.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_BREAKOUT = ("--env-id=ALE/Breakout-v5", "--preset=cleanrl")
_MONITORS = (
    "--option=gfs.gradient_flow=GradientFlowMonitor",
    "--option=gfs.representation=RepresentationMonitor",
)
_PPO = ("--agent=ppo", *_BREAKOUT)
_DQN = ("--agent=dqn", *_BREAKOUT, "--option=data.buffer_size=100000")
_PQN = ("--agent=pqn", *_BREAKOUT, "--num-envs=128", "--option=data.rollout_steps=32")
_RESIDENT = ("--config=pqn_minatar", "--env-id=tensor/MinAtar/Breakout-v1")
_NO_GRAPHS = "--option=model.cuda_graphs=false"
_OVERLAP = "--option=data.overlap=true"

GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "ppo, 8 environments": {
        "as shipped": _PPO,
        "without CUDA graphs": (*_PPO, _NO_GRAPHS),
        "overlap": (*_PPO, _OVERLAP),
        "bf16": (*_PPO, "--precision=bf16"),
        "interventions": (*_PPO, "--interventions=on"),
        "monitors": (*_PPO, *_MONITORS),
    },
    "dqn, 1 environment": {
        "as shipped": _DQN,
        "without CUDA graphs": (*_DQN, _NO_GRAPHS),
        "overlap": (*_DQN, _OVERLAP),
        "interventions": (*_DQN, "--interventions=on"),
    },
    "pqn, 128 environments": {
        "as shipped": _PQN,
        "without CUDA graphs": (*_PQN, _NO_GRAPHS),
        "overlap": (*_PQN, _OVERLAP),
    },
    "pqn, 128 in tensors": {
        "as shipped": _RESIDENT,
        "without CUDA graphs": (*_RESIDENT, _NO_GRAPHS),
    },
}
"""Options of throughput.py by row, by group; the first row is the one that the others are compared with."""


@dataclass(frozen=True)
class Speed:
    """Result of a row; without numbers if it failed."""

    group: str
    row: str
    steps_per_second: float | None
    by_limit: float | None
    by_first: float | None
    error: str = ""


def measure(groups: dict[str, dict[str, tuple[str, ...]]], seconds: float) -> Iterator[Speed]:
    """Run the rows one after the other, each for some seconds."""
    for group, rows in groups.items():
        first: float | None = None
        for row, options in rows.items():
            outcome, error = _throughput([*options, f"--seconds={seconds:g}"])
            if outcome is None:
                yield Speed(group, row, None, None, None, error)
                continue
            speed = float(outcome["fit"]["steps_per_second"])
            first = first or speed
            yield Speed(group, row, speed, float(outcome["ratio"]), speed / first)


def _throughput(options: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    script = Path(__file__).with_name("throughput.py")
    run = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)
    if run.returncode:
        return None, (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
    return json.loads(run.stdout), ""


def print_speeds(seconds: float, file: Path | None) -> bool:
    """Measure and print all rows; return whether none failed.

    Args:
        seconds: Measuring time of a row.
        file: Where to write the rows as JSON, if anywhere.
    """
    print(f"{'group':22}  {'row':20}  {'steps/s':>8}  {'by limit':>8}  {'by first':>8}  error", flush=True)
    speeds = []
    for speed in measure(GROUPS, seconds):
        speeds.append(speed)
        numbers = (speed.steps_per_second, speed.by_limit, speed.by_first)
        pairs = zip(numbers, (0, 2, 2), strict=True)
        shown = ("-" if each is None else f"{each:.{digits}f}" for each, digits in pairs)
        print(f"{speed.group:22}  {speed.row:20}  " + "".join(f"{each:>8}  " for each in shown) + speed.error)
        sys.stdout.flush()
        if file is not None:  # a machine that is lent for minutes may vanish
            file.write_text(json.dumps([asdict(each) for each in speeds], indent=2) + "\n")
    return not any(speed.error for speed in speeds)
