from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensordict import TensorDict

from lit_gfs.agents import PQN
from lit_gfs.datamodules import RolloutDataModule
from lit_gfs.errors import UserError
from support.fakes import Records
from support.specs import discrete_spec
from support.training import MakeTrainer, rollout_data

SPEC = discrete_spec(2)


def best_value(agent: PQN, observation: torch.Tensor) -> torch.Tensor:
    return agent.q_network(observation).max(-1).values.detach()


def rollout_of(agent: PQN, acted_in: torch.Tensor, /, **following: torch.Tensor) -> TensorDict:
    """A rollout (num_envs, T) as the collector hands it out."""
    batch = acted_in.shape[:2]
    columns = {
        key: value.unsqueeze(-1) if key != "observation" else value for key, value in following.items()
    }
    return TensorDict(
        {
            "observation": acted_in,
            "action": torch.randint(2, batch),
            "value": best_value(agent, acted_in),
            "next": TensorDict(columns, batch),
        },
        batch,
    )


@pytest.mark.parametrize("lambda_", [0.0, 0.65, 1.0])
def test_truncation_bootstraps_from_the_final_observation_and_termination_does_not(lambda_: float) -> None:
    torch.manual_seed(0)
    agent = PQN(SPEC, gamma=0.9, lambda_=lambda_)
    observation, following = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    following[:, :-1] = observation[:, 1:]
    done, terminated = torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)
    # env 0 is truncated at step 1, env 1 terminates at step 2, env 2 goes on.
    done[0, 1] = done[1, 2] = terminated[1, 2] = True
    following[0, 1] = torch.tensor([5.0, -5.0])
    reward = torch.randn(3, 4)
    rollout = rollout_of(
        agent, observation, observation=following, reward=reward, done=done, terminated=terminated
    )

    processed = agent.process_rollout(rollout).view(3, 4)

    next_value = best_value(agent, following)
    expected = torch.zeros(3, 4)
    for env in range(3):
        target = 0.0
        for step in reversed(range(4)):
            future = 0.0 if terminated[env, step] else next_value[env, step].item()
            if not done[env, step] and step < 3:
                future = (1 - lambda_) * future + lambda_ * target
            target = reward[env, step].item() + 0.9 * future
            expected[env, step] = target
    torch.testing.assert_close(processed["target"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(processed["observation"], observation)
    assert torch.equal(processed["action"], rollout["action"])


def test_a_return_computed_by_hand() -> None:
    """Three steps with rewards 1, 2, 3 whose states are all worth 10: no arithmetic but that below."""
    agent = PQN(SPEC, gamma=0.5, lambda_=0.5)
    torch.nn.init.zeros_(agent.q_network.head.weight)
    with torch.no_grad():
        agent.q_network.head.bias.copy_(torch.tensor([10.0, 4.0]))
    no = torch.zeros(1, 3, dtype=torch.bool)
    observation = torch.zeros(1, 3, 2)
    rollout = rollout_of(
        agent,
        observation,
        observation=observation,
        reward=torch.tensor([[1.0, 2.0, 3.0]]),
        done=no,
        terminated=no,
    )

    # 3 + 0.5 * 10 = 8; 2 + 0.5 * (0.5 * 10 + 0.5 * 8) = 6.5; 1 + 0.5 * (0.5 * 10 + 0.5 * 6.5) = 5.125
    assert agent.process_rollout(rollout)["target"].tolist() == pytest.approx([5.125, 6.5, 8.0])


@pytest.mark.parametrize("terminal", [False, True])
def test_a_lost_life_cuts_the_return_only_if_asked(terminal: bool) -> None:
    agent = PQN(
        SPEC, gamma=0.9, lambda_=1.0, reward_scale=0.5, clip_reward=True, end_of_life_is_terminal=terminal
    )
    observation = torch.zeros(1, 2, 2)
    no = torch.zeros(1, 2, dtype=torch.bool)
    rollout = rollout_of(
        agent,
        observation,
        observation=observation,
        reward=torch.tensor([[-7.0, 1.5]]),
        done=no,
        terminated=no,
        end_of_life=torch.tensor([[True, False]]),
    )

    targets = agent.process_rollout(rollout)["target"]

    second = 0.75 + 0.9 * best_value(agent, observation)[0, 0].item()
    assert targets[1].item() == pytest.approx(second)
    assert targets[0].item() == pytest.approx(-1 if terminal else -1 + 0.9 * second)


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_the_loss_compares_chosen_values_with_targets_and_leaves_no_trace(kind: Any) -> None:
    torch.manual_seed(0)
    agent = PQN(SPEC, loss=kind)
    batch = TensorDict(
        {
            "observation": torch.randn(5, 2),
            "action": torch.tensor([0, 1, 1, 0, 1]),
            "target": torch.tensor([9.0, 0.1, -4.0, 0.0, 0.3]),
        },
        [5],
    )
    before = copy.deepcopy(agent.state_dict())
    generator = torch.get_rng_state()

    loss = agent.loss(batch)

    errors = [
        batch["target"][row].item() - agent.q_network(batch["observation"])[row, action].item()
        for row, action in enumerate(batch["action"].tolist())
    ]
    if kind == "mse":
        each = [error**2 for error in errors]
    else:
        each = [error**2 / 2 if abs(error) < 1 else abs(error) - 0.5 for error in errors]
    assert loss.item() == pytest.approx(sum(each) / 5)
    assert not agent.recorded
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in agent.state_dict().items():
        assert torch.equal(value, before[name]), name
    loss.backward()
    assert all(parameter.grad is not None for parameter in agent.parameters())


def test_the_network_normalizes_and_is_trained_whole_by_radam() -> None:
    agent = PQN(SPEC)
    optimizer = agent.configure_optimizers()
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}

    assert isinstance(optimizer, torch.optim.RAdam)
    assert trained == {id(parameter) for parameter in agent.parameters()}
    # linear, LayerNorm, activation, twice: the trunk that PlainTrunk builds with norm: layer
    names = ["trunk.layer_01", "trunk.layer_norm_01", "trunk.layer_02", "trunk.layer_norm_02", "head"]
    assert list(agent.named_layers()) == names
    assert isinstance(agent.named_layers()["trunk.layer_norm_01"], torch.nn.LayerNorm)


def test_lambda_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"^lambda_ is 1.1; expected a number between 0 and 1$"):
        PQN(SPEC, lambda_=1.1)


class Watch(Callback):
    """Keeps, for every step, environment steps, epsilon, learning rate and the minibatch."""

    def __init__(self) -> None:
        self.epsilon: dict[int, float] = {}
        self.lr: list[float] = []
        self.batches: list[TensorDict] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.epsilon[pl_module.env_steps] = pl_module.epsilon
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.batches.append(batch.clone())


@pytest.mark.usefixtures("counting_envs")
def test_targets_of_a_rollout_are_those_of_the_network_that_collected_it(make_trainer: MakeTrainer) -> None:
    """Env 0 terminates every 3 steps, env 1 is truncated every 4; an episode's rewards are 1, 2, 3 ..."""
    data, watch = rollout_data(), Watch()
    agent = PQN(data.env_spec, gamma=0.5, lambda_=0.0)
    networks: list[torch.nn.Module] = []

    class Keep(Callback):
        def on_objective_shift(self, trainer: Trainer, pl_module: Any, reason: str) -> None:
            networks.append(copy.deepcopy(pl_module.q_network))

    make_trainer(callbacks=[watch, Keep()]).fit(agent, data)

    assert len(networks) == 4
    for rollout, network in enumerate(networks):
        first, second = (torch.cat(watch.batches[4 * rollout + at : 4 * rollout + at + 2]) for at in (0, 2))
        rows = {tuple(row) for row in first["observation"].tolist()}
        assert rows == {tuple(row) for row in second["observation"].tolist()}
        # The observation shows the step in the episode and a number that tells episodes, hence envs, apart.
        lengths = {mark: max(step for step, other in rows if other == mark) + 1 for _, mark in rows}
        for row in first:
            step, mark = row["observation"].tolist()
            following = torch.tensor([step + 1, mark])
            value = 0.0 if step + 1 == 3 and lengths[mark] == 3 else network(following).max().item()
            assert row["target"].item() == pytest.approx(step + 1 + 0.5 * value, rel=1e-5)


@pytest.mark.usefixtures("counting_envs")
def test_every_rollout_is_announced(make_trainer: MakeTrainer) -> None:
    heard: list[tuple[str, int]] = []

    class Note(Callback):
        def on_objective_shift(self, trainer: Trainer, pl_module: Any, reason: str) -> None:
            heard.append((reason, trainer.global_step))

    data = rollout_data(total_steps=48, eval_every=48)
    make_trainer(callbacks=[Note()]).fit(PQN(data.env_spec), data)

    assert heard == [("rollout", 0), ("rollout", 4), ("rollout", 8)]


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("anneal", [False, True])
def test_the_learning_rate_falls_with_environment_steps_if_asked(
    anneal: bool, make_trainer: MakeTrainer
) -> None:
    data, watch = rollout_data(), Watch()
    agent = PQN(
        data.env_spec,
        optimizer=lambda parameters: torch.optim.RAdam(parameters, lr=1.0),
        anneal_learning_rate=anneal,
    )

    make_trainer(callbacks=[watch]).fit(agent, data)

    assert watch.lr[::4] == ([1.0, 0.75, 0.5, 0.25] if anneal else [1.0] * 4)


@pytest.mark.usefixtures("counting_envs")
def test_schedules_go_on_after_a_resume(make_trainer: MakeTrainer, tmp_path: Any) -> None:
    def make_agent(data: RolloutDataModule) -> PQN:
        return PQN(
            data.env_spec,
            optimizer=lambda parameters: torch.optim.RAdam(parameters, lr=1.0),
            epsilon_start=1.0,
            epsilon_end=0.2,
            epsilon_decay_steps=100,
            anneal_learning_rate=True,
        )

    data = rollout_data(total_steps=64)
    first = make_trainer()
    first.fit(make_agent(data), data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    data, watch = rollout_data(total_steps=128), Watch()

    make_trainer(callbacks=[watch]).fit(make_agent(data), data, ckpt_path=tmp_path / "half.ckpt")

    assert watch.epsilon == pytest.approx({80: 0.36, 96: 0.232, 112: 0.2, 128: 0.2})
    # The rate of the first rollout was set at the end of the shorter run, when nothing was left of it.
    assert watch.lr[4::4] == pytest.approx([1 - 80 / 128, 1 - 96 / 128, 1 - 112 / 128])


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("saved_at", [4, 5, 6, 8])
def test_a_resumed_run_equals_the_uninterrupted_one(
    make_trainer: MakeTrainer, tmp_path: Any, saved_at: int
) -> None:
    """From the end of a rollout as from its middle."""

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
            if trainer.global_step == saved_at:
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    def run(checkpoint: Any = None) -> PQN:
        torch.manual_seed(0)
        data = rollout_data()
        agent = PQN(data.env_spec, epsilon_decay_steps=100, anneal_learning_rate=True)
        make_trainer(callbacks=[Save()]).fit(agent, data, ckpt_path=checkpoint)
        assert data.env_steps == 64
        return agent

    whole = run()
    resumed = run(tmp_path / "saved.ckpt")

    for (name, expected), got in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(expected, got), name


@pytest.mark.usefixtures("counting_envs")
def test_quantities_are_written_against_environment_steps(make_trainer: MakeTrainer) -> None:
    records, data = Records(), rollout_data()
    agent = PQN(data.env_spec, reward_scale=0.1, epsilon_decay_steps=64, epsilon_end=0.0)

    make_trainer(logger=records, log_every_n_steps=4).fit(agent, data)

    assert sorted(records.rows) == [16, 32, 48, 64]
    assert set(records.rows[16]) >= {
        "loss/q",
        "loss/td_error",
        "loss/q_value",
        "loss/target",
        "train/episode_return",
        "schedule/learning_rate",
        "time/frames",
    }
    assert [records.rows[step]["schedule/epsilon"] for step in (16, 32, 48)] == [0.75, 0.5, 0.25]
    # In 8 steps, env 0 ends two episodes of return 1 + 2 + 3, env 1 two of 1 + 2 + 3 + 4: raw, not scaled.
    assert records.rows[16]["train/episode_return"] == pytest.approx(8)
    assert records.rows[32]["eval/episode_return"] == pytest.approx(8)
