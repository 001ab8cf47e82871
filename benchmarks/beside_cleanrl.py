"""Compare training speed with a script of CleanRL or LeanRL: both in turns on one machine, and their ratio.

The script runs in its own environment; benchmarks/throughput.py runs `fit` with the hyperparameters of the
script. docs/throughput.md explains how to make that environment, and lists differences in the work.

    python benchmarks/beside_cleanrl.py --script ppo --cleanrl ../cleanrl --python ../cleanrl-env/bin/python
    python benchmarks/beside_cleanrl.py --script dqn --cleanrl ../cleanrl --python ../cleanrl-env/bin/python \
        --turns 3 --seconds 30 --clock cpu --option data.num_envs=20 --json dqn.json
    python benchmarks/beside_cleanrl.py --script dqn_torchcompile --leanrl ../leanrl --device cuda \
        --python ../leanrl-env/bin/python --their-option compile=true --their-option cudagraphs=true

Both run on the same device, with the same `OMP_NUM_THREADS` (or without it) and on the same clock. A speed
is the median over segments of at least half a second, after a warm-up of a tenth of the time; a segment has
whole rollouts and all their updates. A segment of a script lies between two of its lines `SPS: ...` (CleanRL)
or `speed: ...` (LeanRL); the first such line comes after its first update. The number in the line is not
used, because it may be the average since the start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from _command_line import answer, rounded, settings, typed
from _throughput_presets import SCRIPTS
from _throughput_turns import CLOCKS, FEWEST_ROUNDS, WARMUP_SHARE, segment_seconds
from throughput import LEARNING_STARTS, PRECISIONS

from lit_gfs.errors import UserError

HERE = Path(__file__).resolve().parent

LIBRARIES = ("lit-gfs", "torch", "torchrl", "lightning", "numpy", "gymnasium", "ale-py")
"""Packages whose versions are printed for `fit`."""

PATIENCE_SECONDS = 900.0
"""Time limit beyond the measuring time, for imports, set-up, and everything before the first update."""

TOLD_LINES = 4
"""Number of last lines to print after a failed run."""


class Pair(NamedTuple):
    """A script and the options for the same work here.

    A DQN script does not run its network while it draws random actions, so epsilon begins low, and learning
    early. A replay of a million of the script's transitions takes 28 GB.
    """

    agent: str
    env_id: str
    theirs: dict[str, Any]
    ours: dict[str, Any]


_EQUALIZED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dqn": ({"learning-starts": LEARNING_STARTS, "start-e": 0.05}, {"model.epsilon_start": 0.05}),
    "dqn_atari": (
        {"learning-starts": LEARNING_STARTS, "start-e": 0.01, "buffer-size": 100_000},
        {"model.epsilon_start": 0.01, "data.buffer_size": 100_000},
    ),
}

_CLEANRL = {
    script: Pair(agent, env_id, *_EQUALIZED.get(script, ({}, {})))
    for agent, scripts in SCRIPTS.items()
    for script, env_id in zip(scripts, ("CartPole-v1", "ALE/Breakout-v5"), strict=True)
}

PAIRS: dict[str, dict[str, Pair]] = {
    "cleanrl": _CLEANRL,
    # LeanRL's scripts have the hyperparameters of CleanRL's.
    "leanrl": {
        f"{script}{suffix}": _CLEANRL[script]
        for script in ("dqn", "ppo_atari_envpool")
        for suffix in ("", "_torchcompile")
    },
}
"""Scripts by repository; a script is a file in the folder of that name in the repository."""


# -- one run -------------------------------------------------------------------------------------------------


def steady_speed(lines: Sequence[tuple[float, int]]) -> float:
    """Return the steps per second of a run from the times of its lines of speed.

    Args:
        lines: Pairs of clock (s) and environment steps so far.

    Raises:
        UserError: If there are too few lines.
    """
    if len(lines) < 2:
        raise UserError(f"{len(lines)} lines of speed; expected a longer run")
    (start, _), (end, _) = lines[0], lines[-1]
    least = segment_seconds(end - start)
    kept = [line for line in lines if line[0] - start >= WARMUP_SHARE * (end - start)]
    ends = kept[:1]
    for line in kept[1:]:
        if line[0] - ends[-1][0] >= least:
            ends.append(line)
    if len(ends) <= FEWEST_ROUNDS:
        raise UserError(f"{len(ends) - 1} segments between lines of speed; expected a longer run")
    return 1 / statistics.median(
        (now - then) / (steps - before) for (then, before), (now, steps) in pairwise(ends)
    )


def repository_of(arguments: argparse.Namespace) -> tuple[str, Path]:
    """Return the name of the repository that the user gave, and its clone."""
    return ("cleanrl", arguments.cleanrl) if arguments.cleanrl is not None else ("leanrl", arguments.leanrl)


def pair_of(arguments: argparse.Namespace) -> Pair:
    """Return the script and the options for the same work here.

    Raises:
        UserError: If the repository has no such script.
    """
    name, clone = repository_of(arguments)
    known = PAIRS[name]
    if arguments.script not in known:
        raise UserError(f"--script is {arguments.script!r}; expected with --{name}: {', '.join(known)}")
    if not (clone / name / f"{arguments.script}.py").is_file():
        raise UserError(f"--{name} {clone} has no {name}/{arguments.script}.py; expected its clone")
    return known[arguments.script]


def their_options(options: dict[str, Any]) -> list[str]:
    """Return options as the scripts read them: those that are true or false are switches without a value."""
    switches = {"true": "--{}", "false": "--no-{}"}
    return [
        switches[str(value)].format(name) if str(value) in switches else f"--{name}={value}"
        for name, value in options.items()
    ]


def run_script(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the script for the measuring time; return its speed and its settings.

    Raises:
        UserError: If it cannot be started, or ends without printing its speed.
    """
    name, clone = repository_of(arguments)
    script = clone.resolve() / name / f"{arguments.script}.py"
    options = their_options({**pair_of(arguments).theirs, **settings(arguments.their_option)})
    device = ["--no-cuda"] if arguments.device == "cpu" else []
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "speeds.json")
        command = [arguments.python.absolute(), HERE / "_cleanrl_timed.py", output]
        command += [str(arguments.seconds), arguments.clock, script, *device, *options]
        # The scripts import helpers from the root of their repository, and write below the working directory.
        # LeanRL's would upload their curves.
        environment = {**os.environ, "PYTHONPATH": str(clone.resolve()), "WANDB_MODE": "disabled"}
        told = run_alone(script.name, command, arguments.seconds, cwd=directory, env=environment)
        known = json.loads(output.read_text())
    if not known["lines"]:
        raise UserError(f"{script.name} printed no speed; its last lines: {told}")
    try:
        return {**known, "steps_per_second": steady_speed(known["lines"])}
    except UserError as error:
        raise UserError(f"{script.name}: {error}") from None


def run_ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run `fit` for the measuring time; return the output of benchmarks/throughput.py.

    Raises:
        UserError: If it fails.
    """
    pair = pair_of(arguments)
    options = {"trainer.accelerator": arguments.device, **pair.ours, **settings(arguments.option)}
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "speed.json")
        command = [sys.executable, HERE / "throughput.py", "--preset", "cleanrl", "--json", output]
        command += ["--agent", pair.agent, "--env-id", pair.env_id, "--precision", arguments.precision]
        command += ["--seconds", str(arguments.seconds), "--clock", arguments.clock]
        command += [f"--option={option.removeprefix('--')}" for option in typed(options)]
        run_alone("throughput.py", command, arguments.seconds)
        return json.loads(output.read_text())


def run_alone(name: str, command: Sequence[str | Path], seconds: float, **options: Any) -> str:
    """Run a command and return its last output; an interrupt of this process kills it.

    Raises:
        UserError: If the command cannot be started, fails or does not end.
    """
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds + PATIENCE_SECONDS,
            **options,
        )
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{name} told no speed within {error.timeout:.0f} seconds") from None
    told = " | ".join(done.stdout.strip().splitlines()[-TOLD_LINES:])
    if done.returncode:
        raise UserError(f"{name} failed with status {done.returncode}; its last lines: {told}")
    return told


# -- report --------------------------------------------------------------------------------------------------


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both in turns; return every turn's speeds and their ratio.

    Raises:
        UserError: If an option is wrong, or a run fails.
    """
    pair = pair_of(arguments)
    if arguments.turns < 1:
        raise UserError(f"--turns is {arguments.turns}; expected at least 1")
    load = os.getloadavg()[0]
    turns = []
    for turn in range(arguments.turns):
        theirs, ours = run_script(arguments), run_ours(arguments)
        speeds = ours["fit"]["steps_per_second"], theirs["steps_per_second"]
        turns.append({"ours": speeds[0], "theirs": speeds[1], "ratio": speeds[0] / speeds[1]})
        print(
            f"{arguments.script}, turn {turn + 1} of {arguments.turns}: ours {speeds[0]:.0f} steps/s, "
            f"theirs {speeds[1]:.0f}, ratio {turns[-1]['ratio']:.2f}",
            file=sys.stderr,
        )
    name, clone = repository_of(arguments)
    return {
        "repository": name,
        "script": arguments.script,
        "agent": ours["agent"],
        "env_id": pair.env_id,
        "ratio": rounded(statistics.median(turn["ratio"] for turn in turns)),
        "turns": rounded(turns),
        "seconds": arguments.seconds,
        "clock": arguments.clock,
        "num_envs": {"ours": ours["num_envs"], "theirs": theirs["num_envs"]},
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "threads": {"ours": ours["threads"], "theirs": theirs["threads"]},
        "precision": ours["precision"],
        "device": ours["device"],
        "options": {
            "ours": {**pair.ours, **settings(arguments.option)},
            "theirs": {**pair.theirs, **settings(arguments.their_option)},
        },
        "machine": {**ours["machine"], "load_average": load},
        "versions": {
            "ours": {"python": sys.version.split()[0], **{name: version(name) for name in LIBRARIES}},
            "theirs": {"commit": commit(clone), **theirs["versions"]},
        },
    }


def commit(repository: Path) -> str | None:
    """Return the commit of a clone; ``None`` if the directory is not a clone."""
    if not (repository / ".git").exists():
        return None
    command = ["git", "-C", repository, "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--script", required=True, help="the script's name, as in dqn or dqn_torchcompile")
    repository = parser.add_mutually_exclusive_group(required=True)
    repository.add_argument("--cleanrl", type=Path, help="a clone of CleanRL's repository")
    repository.add_argument("--leanrl", type=Path, help="a clone of LeanRL's repository")
    parser.add_argument("--python", type=Path, required=True, help="the Python of the script's environment")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="measuring time of each run")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: the processes' own time, on a shared machine"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="32", help="of our networks")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="any option of fit; repeatable"
    )
    parser.add_argument(
        "--their-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any option of the script, as in num-envs=8; repeatable",
    )
    answer(parser, args, compare)


if __name__ == "__main__":
    main()
