"""Measure how fast several processes train: those of DDP, and the remote collectors of one learner.

    python benchmarks/processes.py ddp --seconds 20 --rounds 3 --json processes.json
    python benchmarks/processes.py remote --seconds 20 --milliseconds 10

Each measurement is a `fit` of its own. All kinds of fit take turns, so that other work on the machine affects
all of them alike, and ratios are those of neighbouring fits. The speed is the median of the run's
`time/steps_per_second` in its second half, so that the start of the processes is not part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lit_gfs.runs.event_files import event_directory
from lit_gfs.runs.logged_scalars import logged_scalars

HERE = Path(__file__).resolve().parent
ENDLESS = ["--data.total_steps=1_000_000_000", "--data.eval_every=1_000_000_000", "--run.name=run"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
TIMER = "--trainer.callbacks=[{class_path: Timer, init_args: {duration: '00:00:00:%02d'}}]"
DDP = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def kinds_of_ddp() -> dict[str, list[str]]:
    """Return the options of the fits that compare one process with two, by name."""
    agents = {"PPO": "ppo_cartpole", "PQN": "pqn_cartpole"}
    return {
        f"{agent}, {name}": [f"--config={config}", *options]
        for agent, config in agents.items()
        for name, options in (("one process", []), ("two processes", DDP))
    }


def kinds_of_remote(milliseconds: float) -> dict[str, list[str]]:
    """Return the options of the fits that compare collection here with that of remote collectors, by name."""
    slow = ["--config=ppo_cartpole", "--data.env_id=_slow_env:Slow-v0", "--trust=_slow_env"]
    slow += [f"--data.env_options={{seconds: {milliseconds / 1000}}}", "--data.num_envs=4"]
    slow += ["--data.rollout_steps=16", "--data.minibatches=2", "--trainer.log_every_n_steps=8"]
    return {
        "in the learner's process": slow,
        "one remote collector": [*slow, "--data.remote_collectors=1"],
        "two remote collectors": [*slow, "--data.remote_collectors=2"],
        "two, with overlap": [*slow, "--data.remote_collectors=2", "--data.overlap=true"],
    }


def speed(options: list[str], seconds: int) -> float:
    """Train for some seconds; return the environment steps per second in the second half of the run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "lit_gfs", "fit", *options, *ENDLESS, *QUIET, TIMER % seconds]
        subprocess.run(command, cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)
        logged = logged_scalars(event_directory(Path(directory) / "runs/run/version_0"))
    values = [point.value for point in logged["time/steps_per_second"]]
    return statistics.median(values[len(values) // 2 :])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["ddp", "remote"])
    parser.add_argument("--seconds", type=int, default=20, help="length of each fit, once it has begun")
    parser.add_argument("--rounds", type=int, default=3, help="fits of each kind")
    parser.add_argument("--milliseconds", type=float, default=10.0, help="pause in each step, for remote")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    kinds = kinds_of_ddp() if arguments.what == "ddp" else kinds_of_remote(arguments.milliseconds)
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, options in kinds.items():
            speeds[name].append(speed(options, arguments.seconds))
            print(f"{name}: {speeds[name][-1]:,.0f} steps/s", file=sys.stderr, flush=True)
    rows = summary(speeds)
    print("| fit | steps per second | beside the first of its group |\n|---|---|---|")
    for row in rows:
        print(
            f"| {row['fit']} | {row['median']:,.0f} ({row['least']:,.0f} to {row['most']:,.0f}) "
            f"| {row['ratio']:.2f} ({row['least_ratio']:.2f} to {row['most_ratio']:.2f}) |"
        )
    if arguments.json is not None:
        measured = {"command": sys.argv, "load": os.getloadavg(), "cores": os.cpu_count(), "rows": rows}
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


def summary(speeds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return a row for each kind of fit; a ratio is that of a round to the first kind of its group.

    Args:
        speeds: Steps per second by round, by name; the part of a name before a comma is the group.
    """
    rows = []
    groups: dict[str, list[float]] = {}
    for name, values in speeds.items():
        group = name.partition(",")[0] if name.split(",")[0] in ("PPO", "PQN") else ""
        first = groups.setdefault(group, values)
        ratios = [value / other for value, other in zip(values, first, strict=True)]
        rows.append(
            {
                "fit": name,
                "median": statistics.median(values),
                "least": min(values),
                "most": max(values),
                "ratio": statistics.median(ratios),
                "least_ratio": min(ratios),
                "most_ratio": max(ratios),
            }
        )
    return rows


if __name__ == "__main__":
    main()
