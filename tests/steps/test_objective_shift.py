"""Agents say when their objective changes, and clipping hears it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from lit_gfs.agents import DQN, PPO
from lit_gfs.callbacks import TemporalGradientClipping
from lit_gfs.steps.objective_shift import announce_objective_shift
from support.training import replay_data, rollout_data


class Note(Callback):
    """Keeps what was announced, and after how many optimizer steps."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def on_objective_shift(self, trainer: Trainer, pl_module: Any, reason: str) -> None:
        self.heard.append((reason, trainer.global_step))


@pytest.mark.usefixtures("counting_envs")
def test_dqn_announces_each_target_sync_before_the_step_on_it(make_trainer: Callable[..., Trainer]) -> None:
    data = replay_data(total_steps=100)
    agent = DQN(data.env_spec, target_sync_every=30)
    note = Note()

    make_trainer(callbacks=[note]).fit(agent, data)

    # Two steps of the environments for each update: step 30 is reached at the sixth update.
    assert [reason for reason, _ in note.heard] == ["target_sync"] * 3
    assert [step for _, step in note.heard] == [4, 19, 34]


@pytest.mark.usefixtures("counting_envs")
def test_ppo_announces_each_rollout(make_trainer: Callable[..., Trainer]) -> None:
    data = rollout_data(total_steps=48)
    note = Note()

    make_trainer(callbacks=[note]).fit(PPO(data.env_spec), data)

    assert note.heard == [("rollout", 0), ("rollout", 4), ("rollout", 8)]


@pytest.mark.usefixtures("counting_envs")
def test_clipping_reopens_its_statistics(make_trainer: Callable[..., Trainer]) -> None:
    data = rollout_data(total_steps=128, epochs=4)
    clipping = TemporalGradientClipping(warmup=5, shift_grace=3)
    memories: list[tuple[float, float]] = []

    class Watch(Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            state = clipping._parts[0].algorithm.state
            memories.append((float(state["memory"].max()), float(state["watch"].max())))

    make_trainer(callbacks=[clipping, Watch()]).fit(PPO(data.env_spec), data)

    assert len(memories) == 64
    # From the second rollout on: 5 at most remembered, 8 updates added, the first three only watched.
    assert memories[8:16] == [(6, 2), (7, 1), (8, 0), (9, 0), (10, 0), (11, 0), (12, 0), (13, 0)]
    assert memories[16:] == memories[8:16] * 6


def test_every_callback_hears_of_a_shift() -> None:
    heard: list[str] = []

    def listener() -> SimpleNamespace:
        return SimpleNamespace(on_objective_shift=lambda trainer, module, reason: heard.append(reason))

    trainer: Any = SimpleNamespace(callbacks=[listener(), Callback(), listener()])
    module: Any = None
    announce_objective_shift(trainer, module, "x")
    assert heard == ["x", "x"]
