"""An agent with a critic Q(s, a) and two optimizers, as in soft actor-critic, needs no change elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_gfs.agents import Agent
from lit_gfs.callbacks import GradientFlowMonitor, TemporalGradientClipping
from lit_gfs.collectors.policy import Policy
from lit_gfs.datamodules import ReplayDataModule
from lit_gfs.functional.returns import learner_reward, td_target
from lit_gfs.networks import LinearHead, Network, PlainTrunk, named_layers
from lit_gfs.optim.factory import make_optimizer
from support.fakes import Records
from support.training import quiet_trainer, weights


class ActionValue(nn.Module):
    """Q(s, a) of continuous actions: one value for state and action together."""

    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.network = Network(
            (observations + actions,), None, lambda size: PlainTrunk(size, 16, 1), "orthogonal"
        )
        self.head = LinearHead(self.network.out_features, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.head(self.network(torch.cat([observation, action], -1))).squeeze(-1)


class ActorCriticTwins(Agent):
    """A deterministic actor that climbs a critic, each with an optimizer of its own, stepped by hand."""

    def __init__(self, env_spec: Any, **options: Any) -> None:
        super().__init__(env_spec, **options)
        self.automatic_optimization = False
        self.actor = Network(
            env_spec.observation_shape, None, lambda size: PlainTrunk(size, 16, 1), "orthogonal"
        )
        self.actor_head = LinearHead(self.actor.out_features, env_spec.action_dim, gain=0.01)
        self.critic = ActionValue(env_spec.observation_shape[0], env_spec.action_dim)

    @property
    def trunk(self) -> nn.Module:
        return self.actor.trunk

    @property
    def policy_head(self) -> nn.Module:
        return self.actor_head

    def policy_features(self, observation: Tensor) -> Tensor:
        return self.actor(observation)

    def named_layers(self) -> dict[str, nn.Module]:
        return named_layers(self)

    def act(self, observation: Tensor) -> Tensor:
        return self.actor_head(self.actor(observation)).tanh()

    def collection_policy(self) -> Policy:
        def explore(observation: Tensor) -> dict[str, Tensor]:
            action = self.act(observation)
            return {"action": (action + 0.1 * torch.randn_like(action)).clamp(-1, 1)}

        return Policy(explore, ["action"])

    def eval_policy(self) -> Policy:
        return Policy(lambda observation: {"action": self.act(observation)}, ["action"])

    def critic_loss(self, batch: TensorDictBase) -> Tensor:
        next_ = batch["next"]
        reward, _, terminated = learner_reward(next_)
        with torch.no_grad():
            next_value = self.critic(next_["observation"], self.act(next_["observation"]))
        target = td_target(reward, next_value, terminated, self.gamma)
        return nn.functional.mse_loss(self.critic(batch["observation"], batch["action"]), target)

    def loss(self, batch: TensorDictBase) -> Tensor:
        return self.critic_loss(batch)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:  # type: ignore[override]
        actor_optimizer, critic_optimizer = self.optimizers()  # type: ignore[attr-defined]
        critic_loss = self.critic_loss(batch)
        self._step(critic_optimizer, critic_loss)
        actor_loss = -self.critic(batch["observation"], self.act(batch["observation"])).mean()
        self._step(actor_optimizer, actor_loss)
        self.record({"loss/critic": critic_loss, "loss/actor": actor_loss})

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> list[Optimizer]:  # type: ignore[override]
        actor = [*self.actor.parameters(), *self.actor_head.parameters()]
        return [
            make_optimizer(lambda p: torch.optim.Adam(p, lr=1e-3), actor),
            make_optimizer(lambda p: torch.optim.Adam(p, lr=3e-3), self.critic.parameters()),
        ]


def fit(
    directory: Path, total_steps: int, checkpoint: Path | None = None, **options: Any
) -> tuple[ActorCriticTwins, Trainer, Records]:
    torch.manual_seed(0)
    data = ReplayDataModule(
        "Pendulum-v1",
        num_envs=2,
        total_steps=400,
        eval_every=200,
        eval_episodes=1,
        eval_step_limit=20,
        learning_starts=40,
        steps_per_update=4,
        batch_size=16,
        seed=3,
    )
    if total_steps < 400:
        data.total_steps = total_steps
    records, agent = Records(), ActorCriticTwins(data.env_spec)
    last = ModelCheckpoint(directory, filename="last", enable_version_counter=False)
    callbacks = [GradientFlowMonitor(), TemporalGradientClipping(), last]
    trainer = quiet_trainer(
        callbacks=callbacks, logger=records, log_every_n_steps=10, default_root_dir=directory
    )
    trainer.fit(agent, datamodule=data, ckpt_path=checkpoint)
    return agent, trainer, records


def test_both_are_trained_monitored_and_reported(tmp_path: Path) -> None:
    agent, trainer, records = fit(tmp_path, 400)

    last = {tag: value for row in records.rows.values() for tag, value in row.items()}
    # One step of each optimizer in each of the 90 updates.
    assert trainer.global_step == 2 * 90
    assert last["schedule/learning_rate"] == pytest.approx(1e-3)
    assert last["schedule/learning_rate_1"] == pytest.approx(3e-3)
    assert {"loss/critic", "loss/actor", "eval/episode_return"} <= last.keys()
    fresh = ActorCriticTwins(agent.env_spec)
    for part in ("actor", "critic"):
        assert not torch.equal(weights(getattr(agent, part)), weights(getattr(fresh, part)))


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, _, _ = fit(tmp_path / "whole", 400)
    halves = tmp_path / "halves"
    fit(halves, 200)

    resumed, trainer, _ = fit(halves, 400, checkpoint=halves / "last.ckpt")

    assert trainer.global_step == 2 * 90
    assert torch.equal(weights(resumed), weights(whole))
