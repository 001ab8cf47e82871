from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensordict import TensorDict

from lit_gfs.agents import PPO
from support.specs import continuous_spec, discrete_spec
from support.training import MakeTrainer, rollout_data

DISCRETE = discrete_spec(2)
CONTINUOUS = continuous_spec((-2.0, 0.0), (2.0, 1.0))


def rollout_of(agent: PPO, acted_in: torch.Tensor, /, **following: torch.Tensor) -> TensorDict:
    """A rollout (num_envs, T) as the collector hands it out, acted by the agent."""
    batch = acted_in.shape[:2]
    rollout = agent.collection_policy()(TensorDict({"observation": acted_in}, batch).flatten()).view(batch)
    columns = {
        key: value.unsqueeze(-1) if key != "observation" else value for key, value in following.items()
    }
    rollout["next"] = TensorDict(columns, batch)
    return rollout


def test_truncation_bootstraps_from_the_final_observation_and_termination_does_not() -> None:
    torch.manual_seed(0)
    agent = PPO(DISCRETE, gamma=0.9, lambda_=0.8)
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

    value, next_value = agent.actor_critic.value(observation), agent.actor_critic.value(following)
    expected = torch.zeros(3, 4)
    for env in range(3):
        advantage = 0.0
        for step in reversed(range(4)):
            future = 0.0 if terminated[env, step] else next_value[env, step].item()
            error = reward[env, step].item() + 0.9 * future - value[env, step].item()
            carried = 0.0 if done[env, step] else 0.9 * 0.8 * advantage
            advantage = error + carried
            expected[env, step] = advantage
    torch.testing.assert_close(processed["advantage"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(processed["value_target"], expected + value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_lost_life_cuts_the_bootstrap_only_if_asked(terminal: bool) -> None:
    agent = PPO(DISCRETE, gamma=0.9, lambda_=1.0, clip_reward=True, end_of_life_is_terminal=terminal)
    observation = torch.zeros(1, 2, 2)
    no = torch.zeros(1, 2, dtype=torch.bool)
    rollout = rollout_of(
        agent,
        observation,
        observation=observation,
        reward=torch.tensor([[-7.0, 3.0]]),
        done=no,
        terminated=no,
        end_of_life=torch.tensor([[True, False]]),
    )

    targets = agent.process_rollout(rollout)["value_target"]

    value = agent.actor_critic.value(observation)[0, 0].item()
    second = 1 + 0.9 * value
    assert targets[1].item() == pytest.approx(second)
    assert targets[0].item() == pytest.approx(-1 if terminal else -1 + 0.9 * second)


@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize("clip_value", [0.1, None])
def test_the_loss_is_put_together_as_by_hand(normalize_advantage: bool, clip_value: float | None) -> None:
    class Fixed(torch.nn.Module):
        """Policies (1/2, 1/2) and (1/4, 3/4), values 1 and 2, whatever is observed."""

        def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log(), torch.tensor([1.0, 2.0])

    agent = PPO(
        DISCRETE,
        clip=0.2,
        clip_value=clip_value,
        value_coefficient=0.25,
        entropy_coefficient=0.125,
        normalize_advantage=normalize_advantage,
        target_kl=0.0,
    )
    agent.actor_critic = Fixed()  # type: ignore[assignment]
    batch = TensorDict(
        {
            "observation": torch.zeros(2, 2),
            "sample": torch.tensor([0, 1]),
            "log_prob": torch.tensor([1 / 3, 1.0]).log(),
            "advantage": torch.tensor([3.0, 1.0]),
            "value": torch.tensor([0.5, 2.0]),
            "value_target": torch.tensor([2.0, 0.0]),
        },
        [2],
    )

    # The ratios are 3/2 and 3/4, clipped to 6/5 and 4/5; normalized advantages are 1/sqrt(2) and -1/sqrt(2).
    surrogates = (1.2 / math.sqrt(2), -0.8 / math.sqrt(2)) if normalize_advantage else (1.2 * 3, 0.75 * 1)
    # The first value may move from 1/2 to 3/5 and is 7/5 short of its target then.
    errors = (1.0 if clip_value is None else 1.4, 2.0)
    critic = (errors[0] ** 2 + errors[1] ** 2) / 4
    entropy = (math.log(2) + (math.log(4) / 4 + 3 * math.log(4 / 3) / 4)) / 2
    expected = -sum(surrogates) / 2 + 0.25 * critic - 0.125 * entropy
    assert agent.loss(batch).item() == pytest.approx(expected, rel=1e-5)
    # Training on this batch would skip the rest of the rollout; asking for its loss leaves no trace.
    assert not agent.rollout_exhausted
    assert not agent.recorded


def test_the_log_probability_is_of_the_unclipped_sample_and_only_the_environment_sees_it_clipped() -> None:
    torch.manual_seed(0)
    agent = PPO(CONTINUOUS)
    acted = agent.collection_policy()(TensorDict({"observation": torch.randn(500, 3)}, [500]))

    sample, action = acted["sample"], acted["action"]
    assert sample.abs().max() > 1.5
    mean = agent.actor_critic.policy(acted["observation"])
    expected = torch.distributions.Normal(mean, 1.0).log_prob(sample).sum(-1)
    torch.testing.assert_close(acted["log_prob"], expected)
    clipped = sample.clamp(-1, 1)
    torch.testing.assert_close(action[:, 0], 2 * clipped[:, 0])
    torch.testing.assert_close(action[:, 1], (clipped[:, 1] + 1) / 2)


def test_evaluation_takes_the_mode() -> None:
    torch.manual_seed(0)
    agent, observation = PPO(DISCRETE), torch.randn(50, 2)
    greedy = agent.eval_policy()(TensorDict({"observation": observation}, [50]))["action"]

    assert torch.equal(greedy, agent.actor_critic.policy(observation).argmax(-1))
    assert (
        len(set(agent.collection_policy()(TensorDict({"observation": observation}, [50]))["action"].tolist()))
        == 2
    )


def test_acting_bootstrapping_and_learning_see_standardized_observations() -> None:
    torch.manual_seed(0)
    agent, plain = PPO(DISCRETE, normalize_observation=True), PPO(DISCRETE)
    plain.actor_critic.load_state_dict(agent.actor_critic.state_dict(), strict=False)
    observation, norm = 7 + 3 * torch.randn(50, 2), agent.actor_critic.observation_norm
    assert norm is not None
    norm.observe(observation)
    norm.commit()

    logits, value = plain(norm(observation))

    torch.testing.assert_close(agent(observation), (logits, value))
    torch.testing.assert_close(agent.actor_critic.value(observation), value)
    torch.testing.assert_close(agent.actor_critic.policy(observation), logits)
    torch.testing.assert_close(agent.policy_head(agent.policy_features(observation)), logits)


def test_the_explained_variance_is_a_share_of_that_of_the_targets() -> None:
    torch.manual_seed(0)
    agent, observation = PPO(DISCRETE), torch.randn(3, 4, 2)
    no = torch.zeros(3, 4, dtype=torch.bool)
    rollout = rollout_of(
        agent, observation, observation=observation, reward=torch.randn(3, 4), done=no, terminated=no
    )

    processed = agent.process_rollout(rollout)

    value, target = processed["value"], processed["value_target"]
    expected = 1 - (target - value).var(correction=0) / target.var(correction=0)
    recorded = agent.recorded.take()["loss/explained_variance"]
    assert recorded == pytest.approx(expected.item(), rel=1e-4)


def test_initial_policy_is_nearly_uniform_whatever_the_observation() -> None:
    logits = PPO(DISCRETE).actor_critic.policy(torch.randn(100, 2))

    assert logits.abs().max() < 0.1


class LossKeeper(Callback):
    """Keeps recorded quantities of every step."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.lr: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *arguments: Any) -> None:
        means = pl_module.recorded.take()
        if "loss/approx_kl" in means:
            self.kl.append(means["loss/approx_kl"])
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.usefixtures("counting_envs")
def test_the_first_minibatch_meets_the_policy_that_collected_it(make_trainer: MakeTrainer) -> None:
    """Observation statistics move between rollouts only, so the first ratio is 1 in every rollout."""
    data, keeper = rollout_data(), LossKeeper()
    agent = PPO(data.env_spec, normalize_observation=True)

    make_trainer(callbacks=[keeper], log_every_n_steps=10**9).fit(agent, data)

    assert keeper.kl[::4] == pytest.approx([0, 0, 0, 0], abs=1e-9)
    assert min(keeper.kl[3::4]) > 1e-8
    assert agent.actor_critic.observation_norm is not None
    assert agent.actor_critic.observation_norm.count == 3 * 16  # the last rollout's wait for a next one


@pytest.mark.usefixtures("counting_envs")
def test_the_learning_rate_falls_with_environment_steps(make_trainer: MakeTrainer) -> None:
    data, keeper = rollout_data(), LossKeeper()
    agent = PPO(data.env_spec, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1.0))

    make_trainer(callbacks=[keeper]).fit(agent, data)

    # As in CleanRL: the first rollout is learned from at the full rate, the last at 1 / rollouts of it.
    assert keeper.lr[0] == 1.0
    assert keeper.lr[4] == 0.75
    assert keeper.lr[12] == 0.25


@pytest.mark.usefixtures("counting_envs")
def test_a_resumed_run_equals_the_uninterrupted_one(make_trainer: MakeTrainer, tmp_path: Any) -> None:
    class Save(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.datamodule.env_steps}.ckpt")  # type: ignore[attr-defined]

    def run(checkpoint: Any = None) -> PPO:
        torch.manual_seed(0)
        data = rollout_data()
        agent = PPO(data.env_spec, normalize_observation=True)
        make_trainer(callbacks=[Save()], enable_checkpointing=True).fit(agent, data, ckpt_path=checkpoint)
        assert data.env_steps == 64
        return agent

    whole = run()
    resumed = run(tmp_path / "32.ckpt")

    for (name, expected), got in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(expected, got), name


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("saved_at", [5, 6, 8])
def test_a_run_resumes_exactly_from_the_middle_of_a_rollout(
    make_trainer: MakeTrainer, tmp_path: Any, saved_at: int
) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
            if trainer.global_step == saved_at:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    def run(checkpoint: Any = None) -> PPO:
        torch.manual_seed(0)
        data = rollout_data()
        agent = PPO(data.env_spec, normalize_observation=True)
        make_trainer(callbacks=[Save()]).fit(agent, data, ckpt_path=checkpoint)
        return agent

    whole = run()
    resumed = run(tmp_path / "mid.ckpt")

    for (name, expected), got in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(expected, got), name


@pytest.mark.usefixtures("counting_envs")
def test_quantities_are_written_against_environment_steps(make_trainer: MakeTrainer, tmp_path: Any) -> None:
    from lightning.pytorch.loggers import CSVLogger

    class Memory(CSVLogger):
        def __init__(self, directory: str) -> None:
            super().__init__(directory)
            self.rows: list[tuple[int | None, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
            self.rows.append((step, dict(metrics)))

    logger = Memory(str(tmp_path))
    data = rollout_data()
    make_trainer(logger=logger, log_every_n_steps=4).fit(PPO(data.env_spec), data)

    training = [(step, row) for step, row in logger.rows if "loss/policy" in row]
    evaluation = [(step, row) for step, row in logger.rows if "eval/episode_return" in row]
    assert [step for step, _ in training] == [16, 32, 48, 64]
    assert [step for step, _ in evaluation] == [32, 64]
    assert set(training[0][1]) >= {
        "loss/value",
        "loss/entropy",
        "loss/approx_kl",
        "train/episode_return",
        "train/episode_length",
        "schedule/learning_rate",
        "time/frames",
        "time/steps_per_second",
    }
    # In 8 steps, env 0 ends two episodes of return 1 + 2 + 3, env 1 two of 1 + 2 + 3 + 4.
    assert training[0][1]["train/episode_return"] == pytest.approx(8)
    assert training[0][1]["train/episode_length"] == pytest.approx(3.5)
    assert training[0][1]["loss/entropy"] == pytest.approx(math.log(2), abs=1e-3)
    assert evaluation[0][1]["eval/episode_return"] == pytest.approx(8)
