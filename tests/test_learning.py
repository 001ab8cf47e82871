"""Agents learn: on a task of seconds by default, on the shipped configurations with ``-m slow``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from lit_gfs.agents import DQN, PPO, PQN, SAC, TD3
from lit_gfs.datamodules import ReplayDataModule, RolloutDataModule
from lit_gfs.main import main
from support.event_files import read_scalars
from support.fakes import CountingEnv, FollowingEnv, MatchingEnv
from support.training import MakeTrainer


@pytest.fixture
def _matching_envs(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_env(env_id: str, num_envs: int = 1, **options: Any) -> CountingEnv:
        return FollowingEnv(num_envs) if env_id == "Following-v0" else MatchingEnv(num_envs)

    monkeypatch.setattr("lit_gfs.datamodules.evaluated.make_env", make_env)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=3e-3)


@pytest.mark.usefixtures("_matching_envs")
@pytest.mark.parametrize(
    "name",
    [
        "DQN",
        "DQN, double, mse",
        "DQN, rainbow",
        "DQN, hl_gauss",
        "PPO",
        "PPO, shared, normalized",
        "PQN",
        "PQN, huber",
        "PQN, hl_gauss",
        "PPO, hl_gauss",
    ],
)
def test_agents_learn_to_match(name: str, make_trainer: MakeTrainer) -> None:
    """Guessing pays 10 of 20, with a standard deviation of 0.5 over 20 episodes; 19 is out of its reach."""
    torch.manual_seed(0)
    data: Any
    agent: LightningModule
    if name.startswith("DQN"):
        data = ReplayDataModule(
            "Matching-v0",
            num_envs=8,
            total_steps=4_000,
            eval_every=4_000,
            eval_episodes=20,
            learning_starts=200,
            batch_size=64,
            steps_per_update=8,
            seed=0,
            **({"n_step": 3, "priority_exponent": 0.5} if "rainbow" in name else {}),
        )
        extra: dict[str, Any] = {"double": True, "loss": "mse"} if "double" in name else {}
        if "rainbow" in name:
            extra = {"double": True, "dueling": True, "noisy": True, "loss": "c51", "v_min": -1, "v_max": 3}
        if "hl_gauss" in name:
            extra = {"loss": "hl_gauss", "v_min": -1, "v_max": 3}
        agent = DQN(
            data.env_spec,
            optimizer=adam,
            gamma=0.5,
            target_sync_every=200,
            epsilon_decay_steps=2_000,
            **extra,
        )
    else:
        data = RolloutDataModule(
            "Matching-v0",
            num_envs=8,
            total_steps=4_000,
            eval_every=4_000,
            eval_episodes=20,
            rollout_steps=32,
            seed=0,
        )
        if name.startswith("PQN"):
            extra = {"loss": "huber"} if "huber" in name else {}
            if "hl_gauss" in name:
                extra = {"loss": "hl_gauss", "v_min": -1, "v_max": 3}
            agent = PQN(data.env_spec, optimizer=adam, gamma=0.5, epsilon_decay_steps=2_000, **extra)
        else:
            extra = {"shared_network": True, "normalize_observation": True} if "shared" in name else {}
            if "hl_gauss" in name:
                extra = {"value_loss": "hl_gauss", "v_min": -1, "v_max": 3}
            agent = PPO(data.env_spec, optimizer=adam, gamma=0.5, **extra)
    trainer = make_trainer()

    trainer.fit(agent, data)

    assert trainer.callback_metrics["eval/episode_return"] >= 19


@pytest.mark.usefixtures("_matching_envs")
@pytest.mark.parametrize("name", ["SAC", "TD3", "DDPG"])
def test_agents_of_continuous_actions_learn_to_follow(name: str, make_trainer: MakeTrainer) -> None:
    """A random action gets -13.3 in 20 steps, and the best constant one -6.7."""
    torch.manual_seed(0)
    data = ReplayDataModule(
        "Following-v0",
        num_envs=8,
        total_steps=2_400,
        eval_every=2_400,
        eval_episodes=20,
        learning_starts=200,
        batch_size=64,
        steps_per_update=4,
        seed=0,
    )
    common: dict[str, Any] = {"optimizer": adam, "gamma": 0.5, "target_tau": 0.05}
    agent: LightningModule
    if name == "SAC":
        agent = SAC(data.env_spec, **common)
    else:
        ddpg = {"critics": 1, "policy_delay": 1, "target_noise": 0.0} if name == "DDPG" else {}
        agent = TD3(data.env_spec, **common, **ddpg)
    trainer = make_trainer()

    trainer.fit(agent, data)

    assert trainer.callback_metrics["eval/episode_return"] >= -0.5


def trained(name: str, *options: str) -> float:
    main(["fit", "--config", name, "--trainer.enable_progress_bar=false", "--run.name=run", *options])
    return read_scalars(Path("runs/run/version_0"))["eval/episode_return"][-1][1]


@pytest.mark.usefixtures("empty_directory")
def test_ppo_leaves_the_untrained_agent_behind_on_cartpole() -> None:
    """The best constant or random policy balances for about 25 steps."""
    assert trained("ppo_cartpole", "--data.total_steps=30_000", "--data.eval_every=30_000") >= 150


@pytest.mark.slow
@pytest.mark.usefixtures("empty_directory")
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("quickstart", 475),
        ("demo", 475),
        ("rainbow_cartpole", 200),
        ("ppo_cartpole", 475),
        ("dqn_acrobot", -100),
        ("ppo_cartpole_swingup", 700),
        ("pqn_cartpole", 450),
        ("pqn_acrobot", -110),
        ("sac_pendulum", -250),
    ],
)
def test_shipped_configs_reach_their_return(name: str, least: float) -> None:
    assert trained(name) >= least
