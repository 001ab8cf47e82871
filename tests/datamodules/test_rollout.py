from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensordict import TensorDict, TensorDictBase

from lit_gfs.agents import DQN, PPO, PQN
from lit_gfs.errors import UserError
from support.training import MakeTrainer, rollout_data

make_data = partial(rollout_data, minibatches=3)


class Recorder(Callback):
    """Keeps what training saw."""

    def __init__(self) -> None:
        self.batches: list[TensorDict | None] = []
        self.steps: list[int] = []
        self.evaluated_at: list[int] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch)
        self.steps.append(trainer.datamodule.env_steps)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluated_at.append(trainer.datamodule.env_steps)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("counting_envs")
def test_every_epoch_is_one_rollout_split_into_passes_of_minibatches(make_trainer: MakeTrainer) -> None:
    data, recorder = make_data(), Recorder()
    trainer = make_trainer(callbacks=[recorder])

    trainer.fit(PPO(data.env_spec), data)

    assert trainer.current_epoch == 4  # 64 steps in rollouts of 16
    assert trainer.global_step == 4 * 2 * 3
    assert recorder.steps == [16] * 6 + [32] * 6 + [48] * 6 + [64] * 6
    first_pass, second_pass = recorder.batches[:3], recorder.batches[3:6]
    assert sorted(len(batch) for batch in first_pass if batch is not None) == [5, 5, 6]
    values = [
        sorted(torch.cat([b["value_target"] for b in part]).tolist()) for part in (first_pass, second_pass)
    ]  # type: ignore[index]
    assert values[0] == values[1]
    orders = [torch.cat([b["value_target"] for b in part]).tolist() for part in (first_pass, second_pass)]  # type: ignore[index]
    assert orders[0] != orders[1]


class DrawKeeper(Callback):
    """Draws a number from each global generator before every batch."""

    def __init__(self) -> None:
        self.draws: list[tuple[float, float, float]] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.draws.append((random.random(), np.random.random(), float(torch.rand(()))))  # noqa: NPY002


@pytest.mark.usefixtures("counting_envs")
def test_evaluations_do_not_change_what_training_draws(make_trainer: MakeTrainer) -> None:
    def run(evaluations: int) -> tuple[list[tuple[float, float, float]], list[int], list[torch.Tensor]]:
        torch.manual_seed(0)
        data, recorder, keeper = make_data(), Recorder(), DrawKeeper()
        agent = PPO(data.env_spec)
        make_trainer(callbacks=[recorder, keeper], limit_val_batches=evaluations).fit(agent, data)
        return keeper.draws, recorder.evaluated_at, list(agent.parameters())

    draws, evaluated_at, weights = run(1)
    undisturbed, never, expected = run(0)

    assert (evaluated_at, never) == ([32, 64], [])
    assert draws == undisturbed
    assert all(map(torch.equal, weights, expected))


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize(
    ("eval_every", "expected"),
    [(16, [16, 32, 48, 64]), (32, [32, 64]), (24, [32, 48, 64]), (48, [48, 64]), (1000, [64])],
)
def test_evaluation_follows_environment_steps_and_ends_the_run(
    make_trainer: MakeTrainer, eval_every: int, expected: list[int]
) -> None:
    data, recorder = make_data(eval_every=eval_every), Recorder()

    make_trainer(callbacks=[recorder]).fit(PPO(data.env_spec), data)

    assert recorder.evaluated_at == expected


@pytest.mark.usefixtures("counting_envs")
def test_total_steps_is_rounded_up_to_a_rollout(make_trainer: MakeTrainer) -> None:
    data = make_data(total_steps=50)

    make_trainer().fit(PPO(data.env_spec), data)

    assert data.env_steps == 64


@pytest.mark.usefixtures("counting_envs")
def test_an_exhausted_rollout_skips_its_remaining_minibatches(make_trainer: MakeTrainer) -> None:
    data, recorder = make_data(), Recorder()
    agent = PPO(data.env_spec, target_kl=1.0)
    agent.target_kl = -1.0  # any divergence is more

    trainer = make_trainer(callbacks=[recorder])
    trainer.fit(agent, data)

    assert [batch is None for batch in recorder.batches] == [False, *[True] * 5] * 4
    assert trainer.global_step == 4
    assert recorder.evaluated_at == [32, 64]


@pytest.mark.usefixtures("counting_envs")
def test_an_exhausted_rollout_stays_exhausted_after_a_resume(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "exhausted.ckpt"

    class SaveOnce(Callback):
        def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
            if trainer.global_step == 2 and not checkpoint.exists():
                trainer.save_checkpoint(checkpoint)

    def run(resumed_from: Path | None) -> tuple[list[bool], list[torch.Tensor]]:
        torch.manual_seed(0)
        data, recorder = make_data(), Recorder()
        agent = PPO(data.env_spec, target_kl=1.0)
        agent.target_kl = -1.0  # any divergence is more
        make_trainer(callbacks=[recorder, SaveOnce()]).fit(agent, data, ckpt_path=resumed_from)
        return [batch is None for batch in recorder.batches], list(agent.parameters())

    skipped, expected = run(None)
    skipped_after, weights = run(checkpoint)

    # The first minibatch of the second rollout of 6 was learned from.
    assert skipped_after == skipped[7:] == [True] * 5 + [False, *[True] * 5] * 2
    assert all(map(torch.equal, weights, expected))


def rollouts_of(make_trainer: MakeTrainer, saves_in: int | None, **arguments: Any) -> list[TensorDictBase]:
    """Fit, asking for the datamodule's state in an epoch or never; return all rollouts."""
    data = make_data(**arguments)
    torch.manual_seed(0)
    agent = PPO(data.env_spec)
    kept: list[TensorDictBase] = []

    class Save(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == saves_in:
                trainer.datamodule.state_dict()  # type: ignore[attr-defined]

    process = agent.process_rollout

    def keep(rollout: TensorDictBase) -> TensorDict:
        kept.append(rollout.clone())
        return process(rollout)

    agent.process_rollout = keep  # type: ignore[method-assign]
    make_trainer(callbacks=[Save()]).fit(agent, data)
    return kept


def starts(rollout: TensorDictBase) -> list[float]:
    return rollout["observation"][:, 0, 0].tolist()


@pytest.mark.usefixtures("counting_envs")
def test_a_checkpoint_of_what_cannot_be_restored_is_a_barrier(make_trainer: MakeTrainer) -> None:
    """Asking for the state resets all environments before the next rollout, to a seed of (run seed, step)."""
    without, with_one = (rollouts_of(make_trainer, saves_in, checkpoint_every=1000) for saves_in in (None, 1))

    # Rollouts of 8 steps of 3- and 4-step episodes end after 2 and 0 steps of an open episode.
    assert starts(without[2]) == [16 % 3, 0]
    assert starts(with_one[2]) == [0, 0]
    torch.testing.assert_close(without[1], with_one[1])
    marks = with_one[2]["observation"][:, 0, 1]
    assert not torch.equal(marks, with_one[0]["observation"][:, 0, 1])


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("saves_in", [None, 1])
def test_barriers_come_on_a_count_of_their_own(make_trainer: MakeTrainer, saves_in: int | None) -> None:
    rollouts = rollouts_of(make_trainer, saves_in, checkpoint_every=32, eval_every=1000)

    assert [starts(rollout)[0] for rollout in rollouts] == [0, 8 % 3, 0, 8 % 3]


@pytest.mark.parametrize("saves_in", [0, 1, 2])
def test_a_checkpoint_of_what_can_be_restored_cuts_nothing(make_trainer: MakeTrainer, saves_in: int) -> None:
    options = {"env_id": "CartPole-v1", "eval_every": 16, "checkpoint_every": 16}
    without, with_one = (rollouts_of(make_trainer, saved, **options) for saved in (None, saves_in))

    for one, other in zip(without, with_one, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("num_envs", "rollout_steps", "total_steps", "ends_at"),
    [(2, 8, 64, 64), (2, 8, 50, 50), (2, 8, 49, 50), (4, 8, 33, 36), (4, 8, 1, 4), (3, 5, 16, 18)],
)
@pytest.mark.parametrize("agent", [PPO, PQN])
def test_a_run_ends_with_the_vector_step_that_reaches_its_steps(
    make_trainer: MakeTrainer,
    agent: Any,
    num_envs: int,
    rollout_steps: int,
    total_steps: int,
    ends_at: int,
) -> None:
    data, recorder = (
        make_data(
            env_id="CartPole-v1",
            num_envs=num_envs,
            rollout_steps=rollout_steps,
            total_steps=total_steps,
            eval_every=1000,
        ),
        Recorder(),
    )

    module = agent(data.env_spec, anneal_learning_rate=True)
    make_trainer(callbacks=[recorder]).fit(module, data)

    assert data.env_steps == ends_at
    assert recorder.evaluated_at == [ends_at]
    assert module.schedule_values()["schedule/learning_rate"] == 0
    # A last, shorter rollout is learned from in minibatches of the usual size.
    sizes = [len(batch) for batch in recorder.batches if batch is not None]
    usual = num_envs * rollout_steps / 3
    last = ends_at % (num_envs * rollout_steps) or num_envs * rollout_steps
    assert min(sizes) >= min(last, usual) * 2 / 3 - 1
    assert sum(sizes) == 2 * ends_at


def position_after(loader: Any, count: int) -> list[TensorDict]:
    return [next(loader) for _ in range(count)]


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("taken", [2, 3, 6])
def test_the_loader_resumes_in_the_middle_of_a_rollout(make_trainer: MakeTrainer, taken: int) -> None:
    data, agent, trainer = make_data(), None, make_trainer()
    torch.manual_seed(0)
    agent = PPO(data.env_spec)
    trainer.strategy.connect(agent)
    data.trainer = trainer  # type: ignore[assignment]
    agent.trainer = trainer
    trainer.datamodule = data  # type: ignore[attr-defined]
    loader = data.train_dataloader()
    iter(loader)
    position_after(loader, taken)
    data_state, state = data.state_dict(), loader.state_dict()
    if taken == 6:
        iter(loader)
    expected = position_after(loader, 3)

    again = make_data()
    again.trainer = trainer  # type: ignore[assignment]
    trainer.datamodule = again  # type: ignore[attr-defined]
    again.load_state_dict(data_state)
    resumed = again.train_dataloader()
    resumed.load_state_dict(state)
    iter(resumed)
    if taken == 6:
        # As Lightning does: the finished pass is left before another one is begun.
        with pytest.raises(StopIteration):
            next(resumed)
        iter(resumed)

    for got, want in zip(position_after(resumed, 3), expected, strict=True):
        torch.testing.assert_close(got.to_dict(), want.to_dict(), rtol=0, atol=0)


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("taken", [5, 6])
def test_a_run_that_is_resumed_with_fewer_epochs_collects_on(
    make_trainer: MakeTrainer, tmp_path: Path, taken: int
) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            if trainer.global_step == taken:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    data = make_data(epochs=2, minibatches=3, total_steps=64)
    make_trainer(callbacks=[Save()], limit_val_batches=0).fit(PPO(data.env_spec), data)

    fewer = make_data(epochs=1, minibatches=3, total_steps=64)
    trainer = make_trainer(limit_val_batches=0, max_steps=taken + 50)
    trainer.fit(PPO(fewer.env_spec), fewer, ckpt_path=tmp_path / "mid.ckpt")
    assert fewer.env_steps == 64
    assert trainer.global_step == taken + 3 * 3  # three more rollouts of 16


def test_more_minibatches_than_transitions_are_refused() -> None:
    with pytest.raises(UserError, match="minibatches is 17, more than the 16 transitions"):
        make_data(minibatches=17)


@pytest.mark.usefixtures("counting_envs")
def test_an_agent_that_learns_from_replay_is_refused(make_trainer: MakeTrainer) -> None:
    data = make_data()

    with pytest.raises(UserError, match="DQN learns from replay; use ReplayDataModule"):
        make_trainer().fit(DQN(data.env_spec), data)


@pytest.mark.parametrize(
    "name",
    ["num_envs", "total_steps", "eval_every", "eval_episodes", "rollout_steps", "epochs", "minibatches"],
)
def test_counts_must_be_positive(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is -1; expected a whole number of at least 1"):
        make_data(**{name: -1})


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize(("fresh", "updates"), [(False, 16), (True, 13)])
def test_a_begun_rollout_is_left_out_where_experience_is_fresh(
    fresh: bool, updates: int, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """A rollout has four updates; the checkpoint is of the first one of the second rollout."""

    def fit(checkpoint: Path | None) -> tuple[int, int]:
        data = rollout_data()
        data.fresh_experience = fresh and checkpoint is not None
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
        trainer = make_trainer(callbacks=[saver])
        trainer.fit(PPO(data.env_spec), data, ckpt_path=checkpoint, weights_only=True)
        return trainer.global_step, data.env_steps

    assert fit(None) == (16, 64)
    assert fit(tmp_path / "step=5.ckpt") == (updates, 64)
