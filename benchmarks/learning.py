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

EVALUATION = "eval/episode_return"
TRAINING = "train/episode_return"


class Curve(NamedTuple):
    """Mean raw returns of full episodes, at environment steps."""

    steps: list[int]
    returns: list[float]


class Run(NamedTuple):
    """One finished run: its curves in environment steps, and its wall time in seconds."""

    config: str
    seed: int
    evaluation: Curve
    training: Curve
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
    """Read a run's curves from its TensorBoard events."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    curves = []
    for tag in (EVALUATION, TRAINING):
        points = events.Scalars(tag)
        curves.append(Curve([point.step for point in points], [point.value for point in points]))
    seconds = events.Scalars(EVALUATION)[-1].wall_time - events.Scalars("time/frames")[0].wall_time
    return Run(config, seed, *curves, seconds)


def table(runs: list[Run]) -> str:
    """Return a Markdown table, one row a configuration and seed."""
    lines = [
        "| configuration | seed | steps | final return | best return | first evaluation | wall time, s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run.config} | {run.seed} | {run.evaluation.steps[-1]:,} | {run.evaluation.returns[-1]:.1f} "
        f"| {max(run.evaluation.returns):.1f} | {run.evaluation.returns[0]:.1f} | {run.seconds:.0f} |"
        for run in runs
    ]
    return "\n".join(lines) + "\n"


def write_figure(runs: list[Run], path: Path) -> None:
    """Draw every run's curves, one panel a configuration: evaluation solid, training faint."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    configs = list(dict.fromkeys(run.config for run in runs))
    figure = Figure(figsize=(4.2 * len(configs), 3.2), layout="constrained")
    for panel, config in zip(figure.subplots(1, len(configs), squeeze=False)[0], configs, strict=True):
        for color, run in enumerate(run for run in runs if run.config == config):
            panel.plot(*run.training, color=f"C{color}", alpha=0.3, linewidth=0.8)
            panel.plot(*run.evaluation, color=f"C{color}", linewidth=1.5, label=f"seed {run.seed}")
        panel.set(title=config, xlabel="environment steps", ylabel="mean return of full episodes")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
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
        writer.writerow(["configuration", "seed", "episodes", "env_steps", "mean_return"])
        for run in runs:
            for episodes, curve in (("evaluation", run.evaluation), ("training", run.training)):
                points = zip(*curve, strict=True)
                writer.writerows([run.config, run.seed, episodes, *point] for point in points)
    write_figure(runs, arguments.output.with_suffix(".png"))
    print(table(runs))


if __name__ == "__main__":
    main()
