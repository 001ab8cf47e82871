"""Train shipped configurations with several seeds; write a table, the curves and a figure.

    python benchmarks/learning.py quickstart ppo_cartpole --seeds 0 1 2 --output docs/results/learning
    python benchmarks/learning.py quickstart "deep: quickstart --model.trunk.depth 16" --output runs/deep

Each run is a separate process, `python -m lit_gfs fit --config NAME --seed_everything SEED`. A variant has a
label, a configuration and options of `fit`. The script does not repeat existing runs: delete their directory
under `--root` to do so. It passes options after `--` to every `fit`. The final score is the last evaluation's
mean raw return: full episodes, greedy policy.
"""

from __future__ import annotations

import argparse
import csv
import math
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gfs.runs.event_files import event_directory

EVALUATION = "eval/episode_return"
TRAINING = "train/episode_return"


class Curve(NamedTuple):
    """Mean raw returns of full episodes, at environment steps."""

    steps: list[int]
    returns: list[float]


class Variant(NamedTuple):
    """A variant to train: a configuration and options of ``fit``."""

    label: str
    config: str
    options: list[str]


class Run(NamedTuple):
    """One finished run: its curves in environment steps, and its wall time in seconds."""

    label: str
    seed: int
    evaluation: Curve
    training: Curve
    seconds: float


def parse_variant(text: str) -> Variant:
    """Read ``CONFIG`` or ``LABEL: CONFIG OPTIONS``."""
    label, colon, command = text.partition(": ")
    config, *options = shlex.split(command if colon else text)
    return Variant(label if colon else config, config, options)


def train(variant: Variant, seed: int, root: Path, options: list[str]) -> Path:
    """Run ``fit`` unless its directory holds a finished run; return the directory."""
    name = variant.label.replace(" ", "_")
    directory = root / name / f"seed_{seed}"
    if not (directory / "finished").exists():
        place = ["--run.root", str(root), "--run.name", name, "--run.version", f"seed_{seed}"]
        command = ["fit", "--config", variant.config, "--seed_everything", str(seed), *place]
        command += [*variant.options, *options]
        subprocess.run([sys.executable, "-m", "lit_gfs", *command], check=True)
        (directory / "finished").touch()
    return directory


def read(label: str, seed: int, directory: Path) -> Run:
    """Read a run's curves from its TensorBoard events."""
    events = EventAccumulator(str(event_directory(directory)), size_guidance={"scalars": 0})
    events.Reload()
    curves = []
    for tag in (EVALUATION, TRAINING):
        points = events.Scalars(tag)
        curves.append(Curve([point.step for point in points], [point.value for point in points]))
    seconds = events.Scalars(EVALUATION)[-1].wall_time - events.Scalars("time/frames")[0].wall_time
    return Run(label, seed, *curves, seconds)


def table(runs: list[Run]) -> str:
    """Return a Markdown table with a row per configuration and seed."""
    lines = [
        "| configuration | seed | steps | final return | best return | first evaluation | wall time, s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run.label} | {run.seed} | {run.evaluation.steps[-1]:,} | {run.evaluation.returns[-1]:.1f} "
        f"| {max(run.evaluation.returns):.1f} | {run.evaluation.returns[0]:.1f} | {run.seconds:.0f} |"
        for run in runs
    ]
    return "\n".join(lines) + "\n"


def write_figure(runs: list[Run], path: Path) -> None:
    """Draw every run's curves with a panel per variant: evaluation solid, training faint."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    labels = list(dict.fromkeys(run.label for run in runs))
    columns = min(4, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[len(labels) :]:
        panel.set_axis_off()
    for panel, label in zip(panels, labels, strict=False):
        for color, run in enumerate(run for run in runs if run.label == label):
            panel.plot(*run.training, color=f"C{color}", alpha=0.3, linewidth=0.8)
            panel.plot(*run.evaluation, color=f"C{color}", linewidth=1.5, label=f"seed {run.seed}")
        panel.set(title=label, xlabel="environment steps", ylabel="mean return of full episodes")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train, then write ``<output>.md``, ``<output>.csv`` and ``<output>.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("variants", nargs="+", type=parse_variant)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--root", type=Path, default=Path("runs/learning"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/learning"))
    own = sys.argv[1:]
    options: list[str] = []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    planned = [(variant, seed) for variant in arguments.variants for seed in arguments.seeds]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        directories = pool.map(lambda plan: train(*plan, arguments.root, options), planned)
    pairs = zip(planned, directories, strict=True)
    runs = [read(variant.label, seed, directory) for (variant, seed), directory in pairs]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/learning.py {shlex.join(sys.argv[1:])}"
    arguments.output.with_suffix(".md").write_text(f"Made by `{command}`.\n\n{table(runs)}")
    with arguments.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["configuration", "seed", "episodes", "env_steps", "mean_return"])
        for run in runs:
            for episodes, curve in (("evaluation", run.evaluation), ("training", run.training)):
                points = zip(*curve, strict=True)
                writer.writerows([run.label, run.seed, episodes, *point] for point in points)
    write_figure(runs, arguments.output.with_suffix(".png"))
    print(table(runs))


if __name__ == "__main__":
    main()
