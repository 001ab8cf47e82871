"""Train shipped configurations with several seeds; write a table, the curves and a figure.

    python benchmarks/learning.py quickstart ppo_cartpole --seeds 0 1 2 --output docs/results/learning

Each run is a process of its own, `python -m lit_gfs fit --config NAME --seed_everything SEED`. Runs that
are there already are not repeated: delete their directory under `--root` to do so. Options after `--` are
handed to `fit`. The final score is the last evaluation's mean raw return: full episodes, greedy policy.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAG = "eval/episode_return"


class Run(NamedTuple):
    """One finished run: its evaluation curve in environment steps, and its wall time in seconds."""

    config: str
    seed: int
    steps: list[int]
    returns: list[float]
    seconds: float


def train(config: str, seed: int, root: Path, options: list[str]) -> Path:
    """Run ``fit`` unless its directory holds a finished run; return the directory."""
    directory = root / config / f"seed_{seed}"
    if not (directory / "finished").exists():
        place = ["--run.root", str(root), "--run.name", config, "--run.version", f"seed_{seed}"]
        command = ["fit", "--config", config, "--seed_everything", str(seed), *place, *options]
        subprocess.run([sys.executable, "-m", "lit_gfs", *command], check=True)
        (directory / "finished").touch()
    return directory


def read(config: str, seed: int, directory: Path) -> Run:
    """Read a run's evaluation curve from its TensorBoard events."""
    events = EventAccumulator(str(directory))
    events.Reload()
    points = events.Scalars(TAG)
    started = events.Scalars("time/steps_per_second")[0].wall_time
    return Run(
        config, seed, [p.step for p in points], [p.value for p in points], points[-1].wall_time - started
    )


def table(runs: list[Run]) -> str:
    """Return a Markdown table, one row a configuration and seed."""
    lines = [
        "| configuration | seed | steps | final return | best return | first evaluation | wall time, s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run.config} | {run.seed} | {run.steps[-1]:,} | {run.returns[-1]:.1f} | {max(run.returns):.1f} "
        f"| {run.returns[0]:.1f} | {run.seconds:.0f} |"
        for run in runs
    ]
    return "\n".join(lines) + "\n"


def write_figure(runs: list[Run], path: Path) -> None:
    """Draw every run's evaluation curve, one panel a configuration."""
    from matplotlib.figure import Figure

    configs = list(dict.fromkeys(run.config for run in runs))
    figure = Figure(figsize=(4.2 * len(configs), 3.2), layout="constrained")
    for panel, config in zip(figure.subplots(1, len(configs), squeeze=False)[0], configs, strict=True):
        for run in runs:
            if run.config == config:
                panel.plot(run.steps, run.returns, label=f"seed {run.seed}", linewidth=1.5)
        panel.set(title=config, xlabel="environment steps", ylabel="evaluation return")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train, then write ``<output>.md``, ``<output>.csv`` and ``<output>.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/learning"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/learning"))
    own = sys.argv[1:]
    options: list[str] = []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    runs = [
        read(config, seed, train(config, seed, arguments.root, options))
        for config in arguments.configs
        for seed in arguments.seeds
    ]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/learning.py {' '.join(sys.argv[1:])}"
    arguments.output.with_suffix(".md").write_text(f"Made by `{command}`.\n\n{table(runs)}")
    with arguments.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["configuration", "seed", "env_steps", "evaluation_return"])
        for run in runs:
            points = zip(run.steps, run.returns, strict=True)
            writer.writerows([run.config, run.seed, step, value] for step, value in points)
    write_figure(runs, arguments.output.with_suffix(".png"))
    print(table(runs))


if __name__ == "__main__":
    main()
