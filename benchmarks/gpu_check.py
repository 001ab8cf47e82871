"""Run a small version of every agent, suite, recipe, precision and way to run, on the available accelerator.

    python benchmarks/gpu_check.py --jobs 10
    python benchmarks/gpu_check.py --only 'dqn.*(gfs|compile)' --json check.json
    python benchmarks/gpu_check.py --speed --seconds 30 --json speed.json

A row runs the command line with an evaluation and a checkpoint halfway: `fit`, `validate` and `test` of its
last checkpoint, and `fit` from that checkpoint. Each row is a separate process, and all imports are done
before. On a GPU a row counts only if the GPU computed something; rows of 16-bit floats with a scaled loss run
only on GPUs. The output is a table whose lines appear as the rows end. The exit status is 1 if a row failed.
With --speed it measures training speed instead, see _gpu_speed.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _gpu_speed import print_speeds

STEPS = ["--data.total_steps=128", "--data.eval_every=64", "--data.eval_episodes=2", "--data.num_envs=2"]
ROLLOUTS = [*STEPS, "--data.rollout_steps=16", "--data.epochs=2", "--data.minibatches=2"]
LEARNERS = {
    "dqn": [
        *("--config=quickstart", *STEPS, "--data.learning_starts=40", "--data.steps_per_update=4"),
        *("--data.batch_size=16", "--data.buffer_size=500", "--model.target_sync_every=60"),
    ],
    "ppo": ["--config=ppo_cartpole", *ROLLOUTS],
    "pqn": ["--config=pqn_cartpole", *ROLLOUTS],
    "classifier": [
        *("--config=label_shuffle", "--data.samples=64", "--data.batch_size=16"),
        *("--data.shuffle_every=1", "--data.epochs=4", "--data.eval_every=2"),
    ],
}
MORE = {"classifier": ["--data.epochs=6"]}
"""The options that make a run longer, if these are not its number of steps."""
SUITES = {
    "cartpole": ["--data.env_id=CartPole-v1"],
    "acrobot": ["--data.env_id=Acrobot-v1", "--data.env_options={max_episode_steps: 40}"],
    "breakout": [
        *("--data.env_id=ALE/Breakout-v5", "--data.env_options={max_frames: 160}"),
        "--model.encoder=NatureCNN",
    ],
    "swingup": [
        "--data.env_id=dm_control/cartpole-swingup-v0",
        "--data.env_options={action_repeat: 50, values_per_actuator: 3}",
    ],
    "swingup, continuous": [
        "--data.env_id=dm_control/cartpole-swingup-v0",
        "--data.env_options={action_repeat: 50}",
        "--model.normalize_observation=true",
    ],
    "minatar": [
        *("--data.env_id=MinAtar/Breakout-v1", "--data.env_options={max_episode_steps: 40}"),
        "--model.encoder=MinAtarCNN",
    ],
    "minatar in tensors": [
        *("--data.env_id=tensor/MinAtar/Seaquest-v1", "--data.env_options={max_episode_steps: 40}"),
        "--model.encoder=MinAtarCNN",
    ],
}
RECIPES = ("baseline", "gfs", "multiskip_kron")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
MONITORS = [
    *("--gfs.gradient_flow=GradientFlowMonitor", "--gfs.gradient_flow.every_n_steps=4"),
    *("--gfs.representation=RepresentationMonitor", "--gfs.representation.every_n_steps=6"),
    *("--gfs.curvature=CurvatureMonitor", "--gfs.curvature.every_n_steps=9"),
]
WAYS = {
    "monitors": MONITORS,
    "compile": ["--model.compile=true"],
    "overlap": ["--data.overlap=true"],
    "without CUDA graphs": ["--model.cuda_graphs=false"],
    "ddp": ["--trainer.strategy=ddp"],
}
SMALL = ["--model.trunk.width=16", "--model.trunk.depth=2"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=5"]

ENVIRONMENT = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # otherwise the parent of all forks would initialize CUDA
    "OMP_NUM_THREADS": "1",  # there are enough processes
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}

_CONTEXT: Any = multiprocessing.get_context("forkserver")
_IMPORTED = [
    "lit_gfs.cli",
    "lit_gfs.agents",
    "lit_gfs.datamodules",
    "ale_py",
    "dm_control.suite",
    "tensorboard",
]


@dataclass(frozen=True)
class Row:
    """A run: its name and its command line."""

    name: str
    learner: str
    options: tuple[str, ...]
    processes: int = 1
    accelerator: str = "auto"


@dataclass(frozen=True)
class Outcome:
    """Result of a row: ``ok`` or ``failed``, its seconds, and the line with the reason."""

    name: str
    status: str
    seconds: float
    error: str = ""


def rows(has_gpu: bool) -> list[Row]:
    """List the rows, the longest first."""
    ways = [row for learner in LEARNERS for row in _ways(learner)]
    return sorted(ways, key=lambda row: "compile" not in row.name) + list(_combinations(has_gpu))


def _ways(learner: str) -> Iterator[Row]:
    is_agent = learner != "classifier"
    for way, options in WAYS.items():
        if is_agent or way != "overlap":
            yield Row(f"{learner}, {way}", learner, ("--config=recipes/gfs", *options))
    yield Row(
        f"{learner}, compile, bf16-mixed", learner, (*WAYS["compile"], "--trainer.precision=bf16-mixed")
    )
    if is_agent:
        ddp = ("--config=recipes/gfs", *WAYS["ddp"], "--trainer.devices=2")
        yield Row(f"{learner}, ddp, 2 processes on the CPU", learner, ddp, 2, "cpu")


def _combinations(has_gpu: bool) -> Iterator[Row]:
    for learner in LEARNERS:
        suites = [suite for suite in SUITES if "continuous" not in suite or learner == "ppo"]
        for suite in suites if learner != "classifier" else ["digits"]:
            for recipe in RECIPES:
                for precision in PRECISIONS[: 3 if has_gpu else 2]:
                    typed = (
                        *SUITES.get(suite, ()),
                        f"--config=recipes/{recipe}",
                        f"--trainer.precision={precision}",
                    )
                    yield Row(f"{learner}, {suite}, {recipe}, {precision}", learner, typed)


def commands(row: Row) -> list[list[str]]:
    """Return the command lines of a row, in order."""
    every = [*QUIET, f"--trainer.accelerator={row.accelerator}"]
    last = ["--ckpt_path=runs/a/b/last.ckpt", *every]
    more = MORE.get(row.learner, ["--data.total_steps=192"])
    fit = ["fit", *LEARNERS[row.learner], *row.options, *SMALL, *every]
    return [
        [*fit, "--run.root=runs", "--run.name=a", "--run.version=b"],
        ["validate", *last],
        ["test", *last],
        ["fit", *last, *more],
    ]


def live(row: Row, directory: str) -> None:
    """Run a row's commands in a directory; their output goes to a file there.

    Raises:
        AssertionError: If a run did not resume, or did not use a GPU.
        SystemExit: As the command line does.
    """
    os.chdir(directory)
    with Path("printed.txt").open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    import torch

    from lit_gfs.main import main
    from lit_gfs.utils.checksummed_files import read_checksummed

    torch.set_num_threads(1)
    reached = []
    for command in commands(row):
        if row.processes == 1:
            main(command)
        elif command[0] == "fit":  # each of its processes has to import everything
            subprocess.run([sys.executable, "-m", "lit_gfs", *command], check=True)
        reached.append(read_checksummed(Path("runs/a/b/last.ckpt"))["global_step"])
    assert 0 < reached[0] < reached[-1], f"optimizer steps after each command: {reached}"
    is_on_gpu = torch.cuda.is_available() and row.accelerator == "auto"
    assert not is_on_gpu or torch.cuda.max_memory_allocated(), "nothing was computed on the GPU"


def attempt(row: Row, timeout: float) -> Outcome:
    """Run a row in its own process, with a time limit in seconds."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        began = time.monotonic()
        process = _CONTEXT.Process(target=live, args=(row, directory))
        process.start()
        process.join(timeout)
        if is_late := process.is_alive():
            process.kill()
            process.join()
        seconds = time.monotonic() - began
        printed = Path(directory, "printed.txt")
        lines = printed.read_text(errors="replace").splitlines() if printed.exists() else []
    if process.exitcode == 0:
        return Outcome(row.name, "ok", seconds)
    said = f"after {timeout:g} s: " if is_late else f"exit status {process.exitcode}: "
    return Outcome(row.name, "failed", seconds, said + error_line(lines))


def error_line(lines: Sequence[str]) -> str:
    """Return the last line that names an error; without one, the last line."""
    written = [line.strip() for line in lines if line.strip()]
    errors = [line for line in written if re.match(r"lit_gfs: error:|[\w.]*(Error|Exception)\b", line)]
    return (errors or written or [""])[-1]


def check(chosen: Sequence[Row], jobs: int, timeout: float) -> list[Outcome]:
    """Run rows in parallel; print each when it ends."""
    _CONTEXT.set_forkserver_preload(_IMPORTED)
    width = max(len(row.name) for row in chosen)
    print(f"{'name':{width}}  {'status':6}  {'seconds':>7}  error", flush=True)

    def told(row: Row) -> Outcome:
        outcome = attempt(row, timeout)
        print(
            f"{outcome.name:{width}}  {outcome.status:6}  {outcome.seconds:7.1f}  {outcome.error}", flush=True
        )
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(told, chosen))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def main(args: Sequence[str] | None = None) -> None:
    """Run the rows that the arguments choose.

    Raises:
        SystemExit: With status 1 if a row failed, 2 after a user's mistake.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--jobs", type=_positive, default=min(10, os.cpu_count() or 1), help="rows side by side"
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="a regular expression of rows' names")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds that a row may take")
    parser.add_argument("--list", action="store_true", help="print the rows' names alone")
    parser.add_argument("--speed", action="store_true", help="measure training speed instead")
    parser.add_argument("--seconds", type=float, default=30.0, help="measuring time of a row of --speed")
    parser.add_argument("--json", type=Path, help="also write the outcomes to this file")
    arguments = parser.parse_args(args)
    if arguments.speed:
        raise SystemExit(0 if print_speeds(arguments.seconds, arguments.json) else 1)
    os.environ |= ENVIRONMENT
    import torch

    has_gpu = torch.cuda.is_available()
    chosen = [row for row in rows(has_gpu) if re.search(arguments.only, row.name)]
    if not chosen:
        parser.error(f"--only {arguments.only!r} is in no row's name; expected some of those of --list")
    if arguments.list:
        print(*(row.name for row in chosen), sep="\n")
        return
    print(f"torch {torch.__version__} on {'a GPU' if has_gpu else 'the CPU'}: {len(chosen)} rows", flush=True)
    began = time.monotonic()
    outcomes = check(chosen, arguments.jobs, arguments.timeout)
    failed = [outcome for outcome in outcomes if outcome.status != "ok"]
    print(f"{len(outcomes) - len(failed)} ok, {len(failed)} failed in {time.monotonic() - began:.0f} s")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
