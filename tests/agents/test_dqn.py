from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tensordict import TensorDict

from lit_gfs.agents import DQN
from lit_gfs.datamodules import ReplayDataModule
from lit_gfs.errors import UserError
from lit_gfs.networks import MultiSkipTrunk
from support.fakes import CountingEnv, Records
from support.specs import discrete_spec
from support.training import MakeTrainer, replay_data, weights

SPEC = discrete_spec()


def targets(agent: DQN, **columns: torch.Tensor) -> torch.Tensor:
    """Return what a training step trains the values of a batch towards, ``(batch,)``."""
    count = len(columns["reward"])
    next_ = {key: value if key == "observation" else value.view(count, 1) for key, value in columns.items()}
    batch = {"observation": torch.randn(count, 2), "action": torch.zeros(count, dtype=torch.int64)}
    recorded: dict[str, torch.Tensor] = {}
    agent.record = recorded.update  # type: ignore[method-assign, assignment]
    agent.training_step(TensorDict({**batch, "next": TensorDict(next_, [count])}, [count]), 0)
    return recorded["loss/target"]


NEXT = {
    "observation": torch.randn(3, 2),
    "reward": torch.tensor([5.0, -0.5, 1.0]),
    "terminated": torch.tensor([True, False, False]),
    "truncated": torch.tensor([False, True, False]),
    "done": torch.tensor([True, True, False]),
    "end_of_life": torch.tensor([True, False, True]),
}


def test_targets_bootstrap_unless_terminated() -> None:
    agent = DQN(SPEC, gamma=0.9)

    target = targets(agent, **NEXT)

    best = agent.target_network(NEXT["observation"]).max(-1).values
    expected = torch.stack([torch.tensor(5.0), -0.5 + 0.9 * best[1], 1 + 0.9 * best[2]])
    torch.testing.assert_close(target, expected)


def test_a_lost_life_and_clipped_rewards_change_the_target_only_if_asked() -> None:
    agent = DQN(SPEC, gamma=0.9, clip_reward=True, end_of_life_is_terminal=True)

    target = targets(agent, **NEXT)

    best = agent.target_network(NEXT["observation"]).max(-1).values
    torch.testing.assert_close(
        target, torch.stack([torch.tensor(1.0), -0.5 + 0.9 * best[1], torch.tensor(1.0)])
    )


def test_double_learning_lets_the_online_network_choose() -> None:
    torch.manual_seed(0)
    agent = DQN(SPEC, gamma=0.9, double=True)
    torch.nn.init.normal_(agent.q_network.head.weight)
    observation = torch.randn(200, 2)
    no = torch.zeros(200, dtype=torch.bool)

    target = targets(agent, observation=observation, reward=torch.zeros(200), terminated=no, done=no)

    choice = agent.q_network(observation).argmax(-1, keepdim=True)
    valued = agent.target_network(observation)
    torch.testing.assert_close(target, 0.9 * valued.gather(-1, choice).squeeze(-1))
    assert (target < 0.9 * valued.max(-1).values - 1e-6).any()


def test_the_target_network_is_not_trained() -> None:
    agent = DQN(SPEC)
    optimizer = agent.configure_optimizers()
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}

    assert trained == {id(parameter) for parameter in agent.q_network.parameters()}
    assert not any(parameter.requires_grad for parameter in agent.target_network.parameters())
    assert list(agent.named_layers()) == ["trunk.layer_01", "trunk.layer_02", "head"]


make_data = partial(replay_data, total_steps=140)


class SyncKeeper(Callback):
    """Notes at which step the target network changed, and the epsilon of every update."""

    def __init__(self) -> None:
        self.changed_at: list[int] = []
        self.epsilon: dict[int, float] = {}
        self._before: torch.Tensor | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
        now = torch.cat([parameter.flatten() for parameter in pl_module.target_network.parameters()]).clone()
        if self._before is not None and not torch.equal(self._before, now):
            self.changed_at.append(pl_module.env_steps)
        self._before = now
        self.epsilon[pl_module.env_steps] = pl_module.epsilon


@pytest.mark.usefixtures("counting_envs")
def test_target_sync_and_epsilon_follow_environment_steps(make_trainer: MakeTrainer) -> None:
    data, keeper = make_data(), SyncKeeper()
    agent = DQN(
        data.env_spec, target_sync_every=50, epsilon_start=1.0, epsilon_end=0.2, epsilon_decay_steps=100
    )

    make_trainer(callbacks=[keeper]).fit(agent, data)

    assert keeper.changed_at == [50, 100]
    assert keeper.epsilon[50] == pytest.approx(0.6)
    assert keeper.epsilon[140] == 0.2


class WeightKeeper(Callback):
    """Notes the weights of both networks after every optimizer step, and what was announced."""

    def __init__(self) -> None:
        self.online: list[torch.Tensor] = []
        self.target: list[torch.Tensor] = []
        self.heard: list[str] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.keep(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
        if trainer.global_step == len(self.online):
            self.keep(pl_module)

    def keep(self, agent: DQN) -> None:
        self.online.append(weights(agent.q_network))
        self.target.append(weights(agent.target_network))

    def on_objective_shift(self, trainer: Any, pl_module: Any, reason: str) -> None:
        self.heard.append(reason)


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("accumulated", [1, 2])
def test_an_averaged_target_moves_after_each_optimizer_step_and_is_never_copied(
    make_trainer: MakeTrainer, accumulated: int
) -> None:
    data, keeper = make_data(), WeightKeeper()
    agent = DQN(data.env_spec, target_tau=0.1, target_sync_every=50)

    make_trainer(callbacks=[keeper], accumulate_grad_batches=accumulated).fit(agent, data)

    assert len(keeper.online) == 1 + -(-60 // accumulated)
    expected = keeper.online[0]
    for online, target in zip(keeper.online[1:], keeper.target[1:], strict=True):
        expected = 0.9 * expected + 0.1 * online
        torch.testing.assert_close(target, expected)
    assert not torch.allclose(expected, keeper.online[-1])
    assert keeper.heard == []


def test_an_averaged_target_has_the_buffers_of_the_network() -> None:
    agent = DQN(SPEC, target_tau=0.1, trunk=partial(MultiSkipTrunk, width=8))
    agent.trunk.skip_scale.fill_(0.25)

    agent.average_target(0.1)

    assert agent.target_network.trunk.skip_scale == 0.25


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(tau: float) -> None:
    with pytest.raises(
        UserError, match=r"target_tau is .*; expected a number above 0 and at most 1, or null"
    ):
        DQN(SPEC, target_tau=tau)


class RateKeeper(Callback):
    """Notes the learning rate of every update by environment steps."""

    def __init__(self) -> None:
        self.rates: dict[int, float] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates[pl_module.env_steps] = optimizer.param_groups[0]["lr"]


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("anneal", [True, False])
def test_the_learning_rate_falls_with_environment_steps_only_if_asked(
    make_trainer: MakeTrainer, anneal: bool
) -> None:
    data, keeper = make_data(), RateKeeper()
    agent = DQN(
        data.env_spec,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.5),
        anneal_learning_rate=anneal,
    )

    make_trainer(callbacks=[keeper]).fit(agent, data)

    # An update takes the rate that the step before it, two environment steps ago, left.
    steps = list(range(24, 141, 2))
    expected = {step: 0.5 * (1 - (step - 2) / 140) if anneal else 0.5 for step in steps}
    assert {step: keeper.rates[step] for step in steps} == pytest.approx(expected)


def test_frames_are_environment_steps_times_the_frame_skip(
    make_trainer: MakeTrainer, counting_envs: list[CountingEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountingEnv, "frame_skip", 4)
    data, records = make_data(), Records()

    make_trainer(logger=records, log_every_n_steps=5).fit(DQN(data.env_spec), data)

    frames = {step: row["time/frames"] for step, row in records.rows.items() if "time/frames" in row}
    assert len(frames) > 5
    assert max(frames) == 140
    assert frames == {step: 4.0 * step for step in frames}


@pytest.mark.usefixtures("counting_envs")
def test_schedules_and_target_period_go_on_after_a_resume(make_trainer: MakeTrainer, tmp_path: Any) -> None:
    def make_agent(data: ReplayDataModule) -> DQN:
        return DQN(
            data.env_spec, target_sync_every=50, epsilon_start=1.0, epsilon_end=0.2, epsilon_decay_steps=200
        )

    data = make_data(total_steps=80, eval_every=60)
    first = make_trainer()
    first.fit(make_agent(data), data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    data, keeper = make_data(total_steps=300, eval_every=60), SyncKeeper()

    make_trainer(callbacks=[keeper]).fit(make_agent(data), data, ckpt_path=tmp_path / "half.ckpt")

    assert min(keeper.epsilon) > 80
    for step, epsilon in keeper.epsilon.items():
        assert epsilon == pytest.approx(max(0.2, 1 - 0.8 * step / 200))
    # Synced at 50 before; the buffer is refilled up to 100, so that a sync is due at the first update.
    assert [step // 50 for step in keeper.changed_at] == [3, 4, 5, 6][: len(keeper.changed_at)]
    assert len(keeper.changed_at) >= 3
