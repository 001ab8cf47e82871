from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensordict import TensorDict
from torch import Tensor

from lit_gfs.agents import DQN, PPO
from lit_gfs.collectors.evaluation import Evaluation
from lit_gfs.collectors.policy import Policy
from lit_gfs.datamodules import ReplayDataModule
from lit_gfs.errors import UserError
from support.training import MakeTrainer, replay_data

make_data = partial(replay_data, eval_every=50, buffer_size=200, batch_size=16, steps_per_update=4, seed=5)


class Recorder(Callback):
    """Keeps when updates and evaluations happened, and what was learned from."""

    def __init__(self) -> None:
        self.updated_at: list[int] = []
        self.evaluated_at: list[int] = []
        self.batches: list[Any] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch is not None:  # what is left of the last pass
            self.updated_at.append(trainer.datamodule.env_steps)
            self.batches.append(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluated_at.append(trainer.datamodule.env_steps)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("num_envs", [1, 2, 3, 8])
@pytest.mark.parametrize("steps_per_update", [1, 4, 6])
def test_one_update_falls_due_every_so_many_steps(
    make_trainer: MakeTrainer, num_envs: int, steps_per_update: int
) -> None:
    data, recorder = make_data(num_envs=num_envs, steps_per_update=steps_per_update), Recorder()

    make_trainer(callbacks=[recorder]).fit(DQN(data.env_spec), data)

    for update, steps in enumerate(recorder.updated_at, start=1):
        due = 20 + update * steps_per_update
        # Not before it falls due, and not later than the vector step in which it does.
        assert due <= steps < due + max(num_envs, steps_per_update + num_envs)


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("num_envs", [1, 2, 3])
@pytest.mark.parametrize("updates_per_step", [2, 3])
def test_several_updates_fall_due_in_every_step(
    make_trainer: MakeTrainer, num_envs: int, updates_per_step: int
) -> None:
    data = make_data(num_envs=num_envs, steps_per_update=1, updates_per_step=updates_per_step)
    recorder = Recorder()

    make_trainer(callbacks=[recorder]).fit(DQN(data.env_spec), data)

    # Learning starts after 20 steps; a vector step has an update for each of its later steps, times the rate.
    expected = [
        step
        for step in range(num_envs, data.env_steps + 1, num_envs)
        for _ in range(updates_per_step * (step - max(20, step - num_envs)))
    ]
    assert recorder.updated_at == expected
    assert data.planned_batches == len(expected)
    # Evaluations are as far apart as with fewer updates.
    assert recorder.evaluated_at == [72 if num_envs == 3 else 70, 120]


@pytest.mark.usefixtures("counting_envs")
def test_a_rate_is_a_whole_number_of_steps_or_of_updates() -> None:
    with pytest.raises(UserError, match=r"updates_per_step is 2, but steps_per_update is 4; expected one of"):
        make_data(updates_per_step=2)
    with pytest.raises(UserError, match=r"updates_per_step is 0; expected a whole number of at least 1"):
        make_data(steps_per_update=1, updates_per_step=0)


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize(("steps_per_update", "updates_per_step"), [(2, 1), (8, 1), (1, 3)])
def test_another_replay_ratio_holds_from_a_resume_on(
    make_trainer: MakeTrainer, tmp_path: Path, steps_per_update: int, updates_per_step: int
) -> None:
    data = make_data()
    trainer = make_trainer(callbacks=[ModelCheckpoint(tmp_path, filename="last")], enable_checkpointing=True)
    trainer.fit(DQN(data.env_spec), data)
    begun_at = data.env_steps

    rate = {"steps_per_update": steps_per_update, "updates_per_step": updates_per_step}
    data, recorder = make_data(**rate, total_steps=240), Recorder()
    trainer = make_trainer(callbacks=[recorder])
    trainer.fit(DQN(data.env_spec), data, ckpt_path=str(tmp_path / "last.ckpt"))

    assert len(recorder.updated_at) > 5
    for update, steps in enumerate(recorder.updated_at, start=1):
        due = begun_at + update * steps_per_update / updates_per_step
        assert abs(steps - due) < 8


@pytest.mark.usefixtures("counting_envs")
def test_evaluations_are_evenly_spaced_and_the_last_ends_the_run(make_trainer: MakeTrainer) -> None:
    data, recorder = make_data(), Recorder()

    make_trainer(callbacks=[recorder]).fit(DQN(data.env_spec), data)

    # 100 steps of learning in parts of at most 50: 25 updates, 13 of them in the first part.
    assert len(recorder.updated_at) == 25
    assert recorder.evaluated_at == [20 + 13 * 4, 120]
    assert data.env_steps == 120


@pytest.mark.parametrize(
    ("num_envs", "total_steps", "learning_starts", "steps_per_update", "eval_every", "ends_at"),
    [
        (4, 1003, 100, 4, 2000, 1004),
        (4, 1003, 100, 4, 100, 1004),
        (1, 1003, 100, 4, 300, 1003),
        (3, 1000, 10, 7, 90, 1002),
        (8, 500, 0, 1, 111, 504),
        (8, 20, 0, 20, 5, 24),
    ],
)
def test_a_run_ends_with_the_vector_step_that_reaches_its_steps(
    make_trainer: MakeTrainer,
    num_envs: int,
    total_steps: int,
    learning_starts: int,
    steps_per_update: int,
    eval_every: int,
    ends_at: int,
) -> None:
    data, recorder = (
        make_data(
            env_id="CartPole-v1",
            num_envs=num_envs,
            total_steps=total_steps,
            learning_starts=learning_starts,
            steps_per_update=steps_per_update,
            eval_every=eval_every,
        ),
        Recorder(),
    )

    make_trainer(callbacks=[recorder]).fit(DQN(data.env_spec), data)

    assert data.env_steps == ends_at
    assert len(recorder.updated_at) == (ends_at - learning_starts) // steps_per_update
    assert recorder.evaluated_at[-1] == ends_at
    longest = max(after - before for before, after in pairwise([learning_starts, *recorder.evaluated_at]))
    assert longest <= max(eval_every, steps_per_update) + max(num_envs, steps_per_update)


@pytest.mark.usefixtures("counting_envs")
def test_sampled_transitions_keep_their_true_final_observation(make_trainer: MakeTrainer) -> None:
    data, recorder = make_data(), Recorder()

    make_trainer(callbacks=[recorder]).fit(DQN(data.env_spec), data)

    batch = torch.cat(recorder.batches)
    steps, following = batch["observation"], batch["next", "observation"]
    # The counter goes on by one, also into the step that ends an episode, under the episode's own mark.
    assert torch.equal(following[:, 0], steps[:, 0] + 1)
    assert torch.equal(following[:, 1], steps[:, 1])
    assert torch.equal(batch["next", "reward"].squeeze(1), following[:, 0])
    done = batch["next", "done"].squeeze(1)
    assert set(following[done, 0].tolist()) == {3.0, 4.0}
    assert torch.equal(batch["next", "terminated"].squeeze(1), following[:, 0].eq(3) & done)
    assert torch.equal(batch["next", "truncated"].squeeze(1), following[:, 0].eq(4) & done)


@pytest.mark.usefixtures("counting_envs")
def test_runs_of_one_seed_are_equal_and_of_another_differ(make_trainer: MakeTrainer) -> None:
    weights = []
    for seed in (1, 1, 2):
        data = make_data(seed=seed)
        torch.manual_seed(0)
        agent = DQN(data.env_spec)
        make_trainer().fit(agent, data)
        weights.append(torch.cat([p.flatten() for p in agent.q_network.parameters()]))

    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("overlap", [False, True])
def test_overlap_lets_the_policy_lag_by_one_update(make_trainer: MakeTrainer, overlap: bool) -> None:
    """With an update for every vector step, actions are chosen before the update rather than after it."""
    order: list[str] = []

    class Watched(DQN):
        def collection_policy(self) -> Policy:
            policy = super().collection_policy()

            def act(observation: Tensor) -> Mapping[str, Tensor]:
                order.append("act")
                return acting(observation)

            acting, policy.act = policy.act, act
            return policy

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            order.append("learn")
            return super().training_step(batch, batch_idx)

    data = make_data(
        env_id="CartPole-v1", overlap=overlap, learning_starts=2, steps_per_update=2, total_steps=8
    )
    make_trainer(limit_val_batches=0).fit(Watched(data.env_spec), data)

    assert order == ["act", *(["act"] if overlap else []), *["act", "learn"] * 3]
    assert data.env_steps == 8


@pytest.mark.usefixtures("counting_envs")
def test_evaluation_does_not_change_what_training_draws(make_trainer: MakeTrainer) -> None:
    weights = []
    for evaluations in (0, 1):
        data = make_data(eval_every=25)
        torch.manual_seed(0)
        agent = DQN(data.env_spec, eval_epsilon=0.5)
        make_trainer(limit_val_batches=evaluations).fit(agent, data)
        weights.append(torch.cat([p.flatten() for p in agent.q_network.parameters()]))

    assert torch.equal(weights[0], weights[1])


@pytest.mark.usefixtures("counting_envs")
def test_an_agent_that_learns_from_rollouts_is_refused(make_trainer: MakeTrainer) -> None:
    data = make_data()

    with pytest.raises(UserError, match="PPO learns from rollouts; use RolloutDataModule"):
        make_trainer().fit(PPO(data.env_spec), data)


@pytest.mark.usefixtures("counting_envs")
def test_priorities_need_an_agent_that_sets_them(make_trainer: MakeTrainer) -> None:
    class Forgetful(DQN):
        sets_priorities = False

    data = make_data(priority_exponent=0.5)
    with pytest.raises(UserError, match=r"priority_exponent is 0.5, but Forgetful sets no priorities"):
        make_trainer().fit(Forgetful(data.env_spec), data)


@pytest.mark.usefixtures("counting_envs")
def test_a_resumed_run_keeps_the_length_of_its_passes(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            lengths.append(len(trainer.train_dataloader))  # type: ignore[arg-type]

        def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
            if trainer.global_step == 8:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    lengths: list[int] = []
    for eval_every, checkpoint in ((50, None), (20, tmp_path / "mid.ckpt")):
        data = make_data(eval_every=eval_every)
        make_trainer(callbacks=[Save()]).fit(DQN(data.env_spec), data, ckpt_path=checkpoint)

    # The checkpoint lies deeper in its pass than a pass of the shorter length has batches.
    assert lengths == [13, 13]


@pytest.mark.usefixtures("counting_envs")
def test_learning_must_start_before_the_run_ends() -> None:
    with pytest.raises(UserError, match=r"learning_starts is 120; expected 0 to 116"):
        make_data(learning_starts=120)


@pytest.mark.usefixtures("counting_envs")
def test_transitions_move_to_another_device_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    data, meta = ReplayDataModule("Counting-v0"), torch.device("meta")
    batch, evaluation = TensorDict({"reward": torch.ones(2)}, [2]), Evaluation(dict)  # type: ignore[arg-type]
    waits: list[bool] = []
    move = TensorDict.to

    def to(self: TensorDict, *arguments: Any, non_blocking: bool = False, **options: Any) -> Any:
        waits.append(not non_blocking)
        return move(self, *arguments, **options)

    monkeypatch.setattr(TensorDict, "to", to)

    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    assert data.transfer_batch_to_device(batch, meta, 0)["reward"].device == meta
    assert waits == [False]
    assert data.transfer_batch_to_device(None, meta, 0) is None
    assert data.transfer_batch_to_device(evaluation, meta, 0) is evaluation
    assert not hasattr(evaluation, "to")


def test_memory_is_asked_for_for_both_observations_of_a_transition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_gfs.utils.memory.machine_memory", lambda: 24_000)
    small: dict[str, Any] = {"env_id": "CartPole-v1", "num_envs": 1}  # 16 bytes each

    make_data(**small, buffer_size=700)
    with pytest.raises(UserError, match="buffer_size 1000 would take"):
        make_data(**small, buffer_size=1000)
