"""Memory in use while an agent trains on Atari: JSON with a sample every 10,000 steps, and the rise.

    python benchmarks/resident_memory.py --agent dqn
    python benchmarks/resident_memory.py --agent ppo --steps 1_000_000 --option data.num_envs=32

The script trains as `python -m lit_gfs fit` does, with the shipped configuration for Breakout, TensorBoard,
evaluations and checkpoints. Updates are rare and the fully connected layer is narrow, so that 200,000 steps
take minutes on one core; DQN's replay memory is full after a quarter of them. Samples count once the run has
settled, after three tenths: the replay memory is full, and an evaluation and a checkpoint are over.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from _command_line import answer, rounded, settings, typed
from _throughput_presets import CONFIGS
from lightning.pytorch import Callback, LightningModule, Trainer
from replay_memory import resident_bytes
from throughput import MeasuredCLI
from typing_extensions import override

from lit_gfs.configuration.config_files import complete_arguments
from lit_gfs.errors import UserError

MIB = 2**20

SETTLED_SHARE = 0.3
"""The share of the run after which memory has settled."""

OPTIONS: dict[str, Any] = {
    "model.trunk.width": 32,
    "trainer.log_every_n_steps": 10,
    # Episodes of an untrained agent can be long: limit them to 1,000 steps.
    "data.env_options.max_frames": 4_000,
    "data.eval_episodes": 2,
}

_RARE_ROLLOUT_UPDATES = {"data.epochs": 1, "data.minibatches": 4}

RARE_UPDATES: dict[str, dict[str, Any]] = {
    "dqn": {"data.steps_per_update": 64, "data.learning_starts": 1_000},
    "ppo": _RARE_ROLLOUT_UPDATES,
    "pqn": _RARE_ROLLOUT_UPDATES,
}


class MemoryMeter(Callback):
    """Samples the memory in use at regular environment steps.

    Args:
        every: Environment steps between samples.
        settled: The environment step by which memory has settled.
    """

    def __init__(self, every: int, settled: float) -> None:
        self.every = every
        self.settled = settled
        self.samples: list[tuple[int, int]] = []
        """Environment steps, and bytes in use by then."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        buffer_size = getattr(trainer.datamodule, "buffer_size", 0)  # type: ignore[attr-defined]
        if buffer_size > self.settled:
            raise UserError(
                f"data.buffer_size is {buffer_size}; expected at most {self.settled:.0f}, the step from "
                "which memory counts"
            )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        due = self.samples[-1][0] // self.every + 1 if self.samples else 0
        if data.env_steps >= due * self.every:
            self.samples.append((data.env_steps, resident_bytes()))


def rise(samples: Sequence[tuple[int, int]], settled: float) -> dict[str, float]:
    """Compute the rise of memory once it has settled.

    Args:
        samples: Environment steps, and bytes in use by then.
        settled: The environment step from which samples count.

    Returns:
        ``mib_per_100k_steps``, the slope of the line through the samples by least squares, and
        ``largest_rise_mib``, from any of them to any later one.

    Raises:
        UserError: If fewer than three samples count.
    """
    kept = [(steps, count / MIB) for steps, count in samples if steps >= settled]
    if len(kept) < 3:
        raise UserError(f"{len(kept)} samples after step {settled:.0f}; expected more steps, or more samples")
    steps, mib = zip(*kept, strict=True)
    lowest = accumulate(mib, min)
    return {
        "mib_per_100k_steps": 100_000 * statistics.linear_regression(steps, mib).slope,
        "largest_rise_mib": max(now - before for now, before in zip(mib, lowest, strict=True)),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and sample.

    Raises:
        UserError: If an option is wrong, or memory cannot settle.
    """
    steps, settled = arguments.steps, SETTLED_SHARE * arguments.steps
    if arguments.every > steps / 10:
        raise UserError(f"--every is {arguments.every}; expected at most a tenth of --steps, {steps // 10}")
    options: dict[str, Any] = {**OPTIONS, **RARE_UPDATES[arguments.agent], "data.total_steps": steps}
    options["data.eval_every"] = max(1, steps // 8)
    if arguments.agent == "dqn":
        options["data.buffer_size"] = steps // 4
    options.update(settings(arguments.option))
    meter = MemoryMeter(arguments.every, settled)
    command = ["fit", "--config", CONFIGS[arguments.agent][1], *typed(options)]
    with tempfile.TemporaryDirectory() as runs, contextlib.redirect_stdout(sys.stderr):
        cli = MeasuredCLI(complete_arguments([*command, f"--run.root={runs}"]), meter)
    data: Any = cli.datamodule
    return {
        "agent": type(cli.model).__name__,
        "env_id": data.env_id,
        "num_envs": data.num_envs,
        "steps": data.env_steps,
        "updates": cli.trainer.global_step,
        **rounded(rise(meter.samples, settled)),
        "settled_at_step": settled,
        "samples_mib": [[step, round(count / MIB, 1)] for step, count in meter.samples],
        "options": options,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def whole_number(text: str) -> int:
    """Read a positive whole number, ``200_000`` too."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agent", choices=CONFIGS, required=True)
    parser.add_argument("--steps", type=whole_number, default=200_000, help="environment steps")
    parser.add_argument(
        "--every", type=whole_number, default=10_000, help="environment steps between samples"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="any option of fit; repeatable"
    )
    answer(parser, args, measure)


if __name__ == "__main__":
    main()
