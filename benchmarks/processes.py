"""Measure how fast several processes train: those of DDP, and the remote collectors of one learner.

    python benchmarks/processes.py ddp --rollouts 20 --rounds 3 --json processes.json
    python benchmarks/processes.py remote --rollouts 20 --milliseconds 10

Each measurement is a `fit` of its own. All kinds of fit take turns, so that other work on the machine affects
all of them alike, and ratios are those of neighbouring fits. The start of the processes and the first two
rollouts do not count.

Two speeds are measured: environment steps per second, and steps per second of processor time that the busiest
process took. On a shared machine only the second one repeats. For DDP it is the speed of processes that each
have a core of their own, but for the time that they wait for each other.
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

HERE = Path(__file__).resolve().parent
ENDLESS = ["--data.total_steps=1_000_000_000", "--data.eval_every=1_000_000_000", "--trust=_rollout_clock"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
DDP = ["--trainer.devices=2", "--trainer.strategy=ddp"]
SPEEDS = ("wall", "cpu")


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
    slow += ["--data.rollout_steps=16", "--data.minibatches=2"]
    return {
        "PPO, in its own process": slow,
        "PPO, one remote collector": [*slow, "--data.remote_collectors=1"],
        "PPO, two remote collectors": [*slow, "--data.remote_collectors=2"],
        "PPO, two with overlap": [*slow, "--data.remote_collectors=2", "--data.overlap=true"],
    }


def speeds_of(options: list[str], rollouts: int) -> dict[str, float]:
    """Train for some rollouts; return environment steps per second, by clock."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    with tempfile.TemporaryDirectory() as directory:
        clock = f"class_path: _rollout_clock.RolloutClock, init_args: {{directory: ., rollouts: {rollouts}}}"
        command = [sys.executable, "-m", "lit_gfs", "fit", *options, *ENDLESS, *QUIET]
        command.append(f"--trainer.callbacks=[{{{clock}}}]")
        subprocess.run(command, cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)
        measured = [json.loads(path.read_text()) for path in Path(directory).glob("*.json")]
    steps = measured[0]["steps"]
    return {
        "wall": steps / max(each["seconds"] for each in measured),
        "cpu": steps / max(each["cpu_seconds"] for each in measured),
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["ddp", "remote"])
    parser.add_argument("--rollouts", type=int, default=20, help="rollouts to measure in each fit")
    parser.add_argument("--rounds", type=int, default=3, help="fits of each kind")
    parser.add_argument("--milliseconds", type=float, default=10.0, help="pause in each step, for remote")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    kinds = kinds_of_ddp() if arguments.what == "ddp" else kinds_of_remote(arguments.milliseconds)
    speeds: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, options in kinds.items():
            speeds[name].append(speeds_of(options, arguments.rollouts))
            print(name, speeds[name][-1], file=sys.stderr, flush=True)
    rows = summary(speeds)
    print("| fit | steps/s | ratio | steps/s of processor time | ratio |\n|---|---|---|---|---|")
    for row in rows:
        cells = [
            f"{row[clock]['speed']:,.0f} | {row[clock]['ratio']:.2f} {_range(row[clock])}" for clock in SPEEDS
        ]
        print(f"| {row['fit']} | {' | '.join(cells)} |")
    if arguments.json is not None:
        machine = {"load": os.getloadavg(), "cores": len(os.sched_getaffinity(0))}
        arguments.json.write_text(
            json.dumps({"command": sys.argv[1:], **machine, "rows": rows}, indent=1) + "\n"
        )


def summary(speeds: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Return a row for each kind of fit; a ratio is that of a round to the first kind of its group.

    Args:
        speeds: Steps per second of each round, by name and clock; a name begins with its group and a comma.
    """
    rows = []
    first: dict[str, list[dict[str, float]]] = {}
    for name, rounds in speeds.items():
        others = first.setdefault(name.partition(",")[0], rounds)
        row: dict[str, Any] = {"fit": name}
        for clock in SPEEDS:
            ratios = [each[clock] / other[clock] for each, other in zip(rounds, others, strict=True)]
            row[clock] = {
                "speed": statistics.median(each[clock] for each in rounds),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
        rows.append(row)
    return rows


def _range(ratio: dict[str, float]) -> str:
    return f"[{ratio['least']:.2f}, {ratio['most']:.2f}]"


if __name__ == "__main__":
    main()
