"""Training speed of `fit`, the machine's own limit for the same work, and the causes of the difference.

One run trains an agent as `python -m lit_gfs fit` does, TensorBoard included, and stops repeatedly to do the
same work in bare loops: the suite's simulator alone, the network alone on one observation per environment,
the optimizer step alone on a fixed batch. Segments of the fit and the bare loops take turns, so that other
work on the machine affects both. docs/throughput.md explains every field.

    python benchmarks/throughput.py --agent ppo --env-id CartPole-v1
    python benchmarks/throughput.py --agent dqn --env-id ALE/Breakout-v5 --preset cleanrl --seconds 60
    python benchmarks/throughput.py --config pqn_cartpole --option model.trunk.depth=8 --interventions on
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from _command_line import answer, rounded, settings, typed
from _throughput_presets import CONFIGS, PRESETS, SCRIPTS
from _throughput_spans import PARTS, part_of
from _throughput_turns import BARE, CLOCKS, FEWEST_ROUNDS, Round, Turns
from lightning.pytorch import Callback, Trainer
from typing_extensions import override

from lit_gfs.cli import GradientFlowCLI
from lit_gfs.configuration.config_files import complete_arguments, find_config
from lit_gfs.errors import UserError

LEARNING_STARTS = 1_000
"""Maximum of environment steps before the first update, which are not measured."""

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}

ENDLESS = 10**9
"""Environment steps of a run, so many that the clock ends it."""


class MeasuredCLI(GradientFlowCLI):
    """The command line, with one more callback in the Trainer.

    Args:
        args: The command line of ``fit``.
        meter: The callback.
    """

    def __init__(self, args: Sequence[str], meter: Callback) -> None:
        self.meter = meter
        super().__init__(args)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.meter)  # type: ignore[attr-defined]
        return trainer


# -- options -------------------------------------------------------------------------------------------------


def hyperparameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the preset and of this script's options, by the dotted names of ``fit``.

    Raises:
        UserError: If the preset does not suit the task, or an option does not have the form ``key=value``.
    """
    options: dict[str, Any] = {}
    if arguments.preset == "cleanrl":
        if not arguments.agent or not arguments.env_id or arguments.env_id.startswith("dm_control/"):
            raise UserError(
                "--preset cleanrl needs --agent and --env-id, of gymnasium with discrete actions or "
                "'ALE/<Game>-v5'"
            )
        options.update(PRESETS[SCRIPTS[arguments.agent][_is_atari(arguments)]])
        if arguments.interventions == "on":
            options.pop("trainer.gradient_clip_val")  # the recipe clips instead
    if arguments.env_id:
        options["data.env_id"] = arguments.env_id
    if arguments.num_envs:
        options["data.num_envs"] = arguments.num_envs
    if arguments.precision:
        options["trainer.precision"] = PRECISIONS[arguments.precision]
    return {**options, **settings(arguments.option)}


def fit_arguments(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Return the command line of ``fit``.

    Returns:
        The command line, its options from the user, and its options for the measurement, which do not affect
        updates or steps.

    Raises:
        UserError: If an option is missing, or has no such value.
    """
    if not arguments.config and not arguments.agent:
        raise UserError("nothing to measure; expected --agent (dqn, ppo, pqn) or --config")
    config = arguments.config or CONFIGS[arguments.agent][_is_atari(arguments)]
    options = hyperparameters(arguments)
    changed: dict[str, Any] = {"data.total_steps": ENDLESS, "trainer.limit_val_batches": 0}
    shipped = yaml.safe_load(find_config(config).read_text()).get("data", {}).get("init_args", {})
    if not arguments.env_id and "env_id" not in shipped:
        raise UserError(f"--config {config!r} names no environment; expected one with data.env_id")
    if (starts := options.get("data.learning_starts", shipped.get("learning_starts"))) is not None:
        changed["data.learning_starts"] = min(LEARNING_STARTS, int(starts))
    recipes = ["--config", "recipes/gfs"] if arguments.interventions == "on" else []
    return ["fit", "--config", config, *recipes, *typed({**options, **changed})], options, changed


def _is_atari(arguments: argparse.Namespace) -> bool:
    return bool(arguments.env_id) and arguments.env_id.startswith("ALE/")


# -- report --------------------------------------------------------------------------------------------------


def where(rounds: Sequence[Round]) -> tuple[dict[str, float], dict[str, float]]:
    """Split the seconds per environment step of a fit.

    Returns:
        Seconds by part: the three bare loops, and the time of each part of the fit beyond them; and seconds
        by span. Both have the same sum.
    """
    names = sorted({name for each in rounds for name in each.spans})
    spans = {name: statistics.median(each.spans.get(name, 0.0) for each in rounds) for name in names}
    bare = {part: statistics.median(getattr(each, part) for each in rounds) for part in BARE}
    parts = dict.fromkeys([*BARE, *PARTS.values()], 0.0)
    for name, seconds in spans.items():
        parts[part_of(name)] += seconds
    parts["collector"] -= bare["environment"] + bare["policy"]
    parts["learner"] -= bare["update"]
    return {**parts, **bare}, spans


def report(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return speeds, their ratio, and the split of the time: medians over the rounds."""
    fit = statistics.median(each.fit.seconds_per_step for each in rounds)
    bare = {part: statistics.median(getattr(each, part) for each in rounds) for part in BARE}
    limit = sum(bare.values())
    parts, spans = where(rounds)
    total = sum(parts.values())
    ratios = [each.limit / each.fit.seconds_per_step for each in rounds]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "fit": {"steps_per_second": 1 / fit, "seconds_per_step": fit},
        "limit": {"steps_per_second": 1 / limit, "seconds_per_step": limit, **bare},
        "ratio": limit / fit,
        "ratio_quartiles": [low, high],
        "where": {name: {"seconds_per_step": each, "share": each / total} for name, each in parts.items()},
        "spans": {
            name: {"part": part_of(name), "seconds_per_step": each, "share": each / total}
            for name, each in sorted(spans.items(), key=lambda item: -item[1])
        },
        "updates_per_step": sum(each.fit.updates for each in rounds)
        / sum(each.fit.env_steps for each in rounds),
        "instrumentation": statistics.median(
            each.timed.seconds_per_step / each.fit.seconds_per_step - 1 for each in rounds
        ),
        "rounds": len(rounds),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train until the time is over; return all data of the run.

    Raises:
        UserError: If an option is wrong.
    """
    command, options, changed = fit_arguments(arguments)
    turns = Turns(arguments.seconds, CLOCKS[arguments.clock])
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as runs, contextlib.redirect_stdout(sys.stderr):
        cli = MeasuredCLI(complete_arguments([*command, f"--run.root={runs}"]), turns)
    if len(turns.rounds) < FEWEST_ROUNDS:
        raise UserError(f"the run ended after {len(turns.rounds)} rounds of measuring; expected a longer run")
    data: Any = cli.datamodule
    return {
        "agent": type(cli.model).__name__,
        "env_id": data.env_id,
        "num_envs": data.num_envs,
        "preset": arguments.preset,
        "interventions": arguments.interventions,
        "precision": str(cli.trainer.precision),
        "device": str(cli.trainer.strategy.root_device),
        "threads": torch.get_num_threads(),
        "clock": arguments.clock,
        "simulator": turns.simulator,
        "options": options,
        "changed_for_measurement": changed,
        **rounded(report(turns.rounds)),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average": load[0],
            "torch": torch.__version__,
        },
    }


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agent", choices=CONFIGS, help="picks the shipped configuration for the task")
    parser.add_argument("--env-id", help="any environment of make_env")
    parser.add_argument("--config", help="a shipped configuration or a file, in the place of --agent")
    parser.add_argument(
        "--preset", choices=("shipped", "cleanrl"), default="shipped", help="whose hyperparameters"
    )
    parser.add_argument("--num-envs", type=int, help="environments stepped together")
    parser.add_argument("--precision", choices=PRECISIONS)
    parser.add_argument(
        "--interventions", choices=("on", "off"), default="off", help="on: with --config recipes/gfs"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="any option of fit; repeatable"
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: the process's own time, on a machine that is shared",
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="measuring time")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    answer(make_parser(), args, measure)


if __name__ == "__main__":
    main()
