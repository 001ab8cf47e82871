"""Runs on a stream of tasks: when tasks change, and who is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_gfs.collectors.env_runner import EnvRunner
from lit_gfs.datamodules.base import EnvDataModule
from lit_gfs.main import main
from support.comparison import scalars

STREAM = [
    "--data.env_id=MinAtar/Stream-v0",
    "--data.env_options={games: [Breakout, Freeway], switch_every: 96}",
    "--model.encoder=MinAtarCNN",
    "--model.encoder.channels=4",
    *("--model.trunk.width=8", "--model.trunk.depth=1", "--data.num_envs=2"),
    *("--data.total_steps=320", "--data.eval_every=64", "--data.eval_episodes=2"),
    "--data.eval_step_limit=20",  # an episode of Freeway has 2,500
    *("--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=2"),
    *("--run.root=runs", "--run.name=stream", "--run.version=run"),
]
AGENTS = {
    "pqn": ["--config=pqn_cartpole", "--data.rollout_steps=16", "--data.epochs=1", "--data.minibatches=2"],
    "dqn": [
        "--config=quickstart",
        *("--data.learning_starts=40", "--data.steps_per_update=4", "--data.buffer_size=150"),
        *("--data.batch_size=16", "--model.target_sync_every=60"),
    ],
}

pytestmark = pytest.mark.usefixtures("empty_directory")


def note_evaluations(played: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Note the environment steps and the task of every evaluation."""
    play = EnvDataModule._play

    def play_noted(data: EnvDataModule, env: Any, *others: Any) -> Any:
        scores = play(data, env, *others)
        played.append((data.env_steps, env.task))
        return scores

    monkeypatch.setattr(EnvDataModule, "_play", play_noted)


@pytest.mark.parametrize("agent", list(AGENTS))
def test_tasks_change_on_schedule_and_are_announced(agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[int] = []
    announced: list[str] = []
    played: list[tuple[int, int]] = []
    begin = EnvRunner.begin_due_task

    def begin_noted(self: EnvRunner) -> bool:
        has_changed = begin(self)
        changes.extend([self.env_steps] * has_changed)
        return has_changed

    def announce_noted(trainer: Any, pl_module: Any, reason: str) -> None:
        announced.append(reason)

    monkeypatch.setattr(EnvRunner, "begin_due_task", begin_noted)
    monkeypatch.setattr("lit_gfs.agents.learner.announce_objective_shift", announce_noted)
    note_evaluations(played, monkeypatch)

    main(["fit", *AGENTS[agent], *STREAM])

    assert changes == [96, 192, 288]
    assert announced.count("task") == 3
    tasks = scalars(Path("runs/stream/run"))["schedule/task"]
    assert {task for _, task in tasks} == {0.0, 1.0}
    assert all(task == (steps - 1) // 96 % 2 for steps, task in tasks)
    if agent == "pqn":
        # An evaluation plays the task that was trained last.
        assert played == [(64, 0), (128, 1), (192, 1), (256, 0), (320, 1)]
