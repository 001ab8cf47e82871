"""Small runs of the command line, and refused ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_gfs.cli import GradientFlowCLI
from lit_gfs.main import main

DQN = [
    "fit",
    "--config=quickstart",
    "--data.total_steps=600",
    "--data.learning_starts=200",
    "--data.eval_every=200",
    "--data.eval_episodes=2",
    "--data.batch_size=16",
    "--model.trunk.width=16",
    "--trainer.log_every_n_steps=10",
    "--trainer.enable_progress_bar=false",
]
PPO = [
    "fit",
    "--config=ppo_cartpole",
    "--data.total_steps=32",
    "--data.num_envs=2",
    "--data.rollout_steps=8",
    "--data.minibatches=2",
    "--data.eval_episodes=1",
    "--trainer.enable_progress_bar=false",
]
LABELS = ["fit", "--config=label_shuffle", "--data.samples=64", "--data.batch_size=16", "--data.epochs=1"]


Finished = Callable[[list[str]], Any]
"""Makes an empty directory one in which a command has run, by the fixture `finished`."""


class BuiltOnly(GradientFlowCLI):
    """Builds everything, and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line that is refused; return the line."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert line.startswith("lit_gfs: error: ")
    assert len(line) < 1000 or "x" * 1000 in line
    assert sorted(Path.cwd().rglob("*")) == before
    return line


def stopped(arguments: list[str]) -> int | str | None:
    """Run a command line that ends with a status; return the status."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code
