"""Checkpoints that act in plain gymnasium, by `load_policy`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from lit_gfs import load_policy
from lit_gfs.configuration.config_trust import trusting
from lit_gfs.envs import make_env
from lit_gfs.errors import UserError
from lit_gfs.main import main
from lit_gfs.policy import LoadedPolicy
from support.command_line import DQN, LABELS, PPO

SHORT = ["--data.total_steps=220"]
OWN_AGENT = """
from lit_gfs.agents import DQN
class Mine(DQN):
    pass
"""


@pytest.fixture(scope="module")
def trained_dqn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of DQN, which tests copy."""
    root = tmp_path_factory.mktemp("runs")
    main([*DQN, *SHORT, f"--run.root={root}"])
    return root


@pytest.fixture(autouse=True)
def _own_directory(empty_directory: Path) -> None:
    """Runs are written into an empty directory."""


@pytest.fixture
def dqn_run(trained_dqn: Path, _own_directory: None) -> Path:
    """A copy of the run, in the test's directory."""
    shutil.copytree(trained_dqn, "runs")
    return Path("runs/dqn_CartPole-v1/version_0")


def trained(arguments: list[str], *options: str) -> Path:
    """Run a short fit; return its directory."""
    main([*arguments, *options, "--run.root=runs"])
    return max(Path("runs").glob("*/version_0"), key=lambda run: run.stat().st_mtime_ns)


def states(env_id: str, count: int) -> np.ndarray[Any, Any]:
    """Observations of random play."""
    env = gymnasium.make(env_id)
    env.action_space.seed(0)
    seen = [env.reset(seed=0)[0]]
    while len(seen) < count:
        seen.append(env.step(env.action_space.sample())[0])
    return np.stack(seen)


@pytest.mark.parametrize("agent", ["DQN", "PQN", "PPO"])
def test_a_policy_takes_the_best_action_of_the_checkpoint(agent: str, dqn_run: Path) -> None:
    run = dqn_run if agent == "DQN" else trained([PPO[0], f"--config={agent.lower()}_cartpole", *PPO[2:]])
    observations = np.random.default_rng(0).normal(scale=5, size=(50, 4)).astype(np.float32)

    policy = load_policy(run / "last.ckpt")

    network = policy.agent
    saved = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in network.state_dict().items())
    act = network.actor_critic.policy if agent == "PPO" else network.q_network
    best = act(torch.from_numpy(observations)).argmax(-1)
    assert policy(observations).tolist() == best.tolist()
    assert [policy(each) for each in observations] == best.tolist()
    assert len(set(best.tolist())) == 2


def test_a_policy_plays_an_episode_of_plain_gymnasium(dqn_run: Path) -> None:
    policy = load_policy(dqn_run)
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=3)
    is_over, steps = False, 0

    while not is_over:
        observation, _, terminated, truncated, _ = env.step(policy(observation))
        is_over, steps = terminated or truncated, steps + 1

    assert 5 < steps <= 500


def test_a_continuous_action_is_scaled_and_its_observation_normalized() -> None:
    normalized = ["--data.env_id=Pendulum-v1", "--model.normalize_observation=true", "--data.total_steps=64"]
    policy = load_policy(trained(PPO, *normalized))
    observations = states("Pendulum-v1", 10)

    actions = policy(observations)

    critic = policy.agent.actor_critic
    norm = critic.observation_norm
    by_hand = (torch.from_numpy(observations) - norm.mean) / norm.variance.sqrt()
    means = critic.policy_head(critic.policy_network(by_hand.float()))
    assert norm.count > 0
    assert actions == pytest.approx((2 * means).clamp(-2, 2).detach().numpy(), abs=1e-5)
    assert gymnasium.make("Pendulum-v1").action_space.contains(policy(observations[0]))


def test_spaces_of_gymnasium_are_converted_both_ways() -> None:
    run = trained([*DQN, *SHORT], "--data.env_id=FrozenLake-v1")

    policy = load_policy(run)

    one_hot = torch.eye(16)
    best = policy.agent.q_network(one_hot).argmax(-1).tolist()
    assert [policy(index) for index in range(16)] == best
    assert policy(np.arange(16)).tolist() == best
    with pytest.raises(UserError, match="showed 16; its space has 0 to 15"):
        policy(16)


def test_frames_of_atari_are_taken_as_they_are() -> None:
    pong = ["--data.env_id=ALE/Pong-v5", "--data.env_options={max_frames: 40}", "--model.encoder=NatureCNN"]
    run = trained(PPO, *pong, "--trainer.limit_val_batches=0")
    frames = make_env("ALE/Pong-v5", 3).reset()["observation"].numpy()

    policy = load_policy(run)

    assert policy(frames).tolist() == [policy(each) for each in frames]
    with pytest.raises(UserError, match=r"shape is \(84, 84\); expected shape \(4, 84, 84\), or a batch"):
        policy(frames[0, 0])


def test_a_policy_is_greedy_unless_asked_for_the_evaluations_own(dqn_run: Path) -> None:
    config = dqn_run / "config.yaml"
    config.write_text(config.read_text().replace("eval_epsilon: 0.0", "eval_epsilon: 1.0"))
    observations = np.repeat(states("CartPole-v1", 1), 100, axis=0)

    assert len(set(load_policy(dqn_run)(observations).tolist())) == 1
    assert len(set(load_policy(dqn_run, greedy=False)(observations).tolist())) == 2


def test_neither_replay_nor_its_memory_is_needed_and_no_random_number_drawn(
    dqn_run: Path,
) -> None:
    shutil.rmtree(dqn_run / "replay")
    config = dqn_run / "config.yaml"
    assert "buffer_size: 100000\n" in config.read_text()
    config.write_text(config.read_text().replace("buffer_size: 100000\n", "buffer_size: 100000000000\n"))
    before = torch.get_rng_state()

    assert isinstance(load_policy("last"), LoadedPolicy)

    assert torch.equal(torch.get_rng_state(), before)


def test_mistakes_are_told_in_one_line(dqn_run: Path) -> None:
    run, checkpoint, config = dqn_run, dqn_run / "last.ckpt", dqn_run / "config.yaml"

    def told(path: Path | str) -> str:
        with pytest.raises(UserError) as error:
            load_policy(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert told(run / "lost.ckpt").startswith(
        f"checkpoint '{run}/lost.ckpt' not found; expected a checkpoint"
    )
    assert "is no checkpoint, or a damaged one" in told(config)
    shutil.copy(checkpoint, "alone.ckpt")
    assert told("alone.ckpt") == (
        "checkpoint 'alone.ckpt' has no config.yaml of a run beside it; expected that of its run"
    )
    text = config.read_text()
    for former, present, line in (
        ("width: 16\n", "width: 17\n", "does not fit the config.yaml beside it: size mismatch for q_network"),
        ("width: 16\n", "wdth: 16\n", "did you mean 'width'"),
        ("agents.DQN", "agents.PQN", "model.target_sync_every is no known key"),
        ("CartPole-v1", "CartPool-v1", "did you mean 'CartPole-v1'"),
    ):
        assert former in text
        config.write_text(text.replace(former, present))
        assert line in told(checkpoint)


def test_a_classifier_does_not_act() -> None:
    run = trained(LABELS)

    with pytest.raises(UserError, match=r"names no environment \(data.env_id\)"):
        load_policy(run)


def test_only_trusted_classes_are_imported(dqn_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.delitem(sys.modules, "own_agent", raising=False)
    Path("own_agent.py").write_text(OWN_AGENT)
    config = dqn_run / "config.yaml"
    config.write_text(config.read_text().replace("lit_gfs.agents.DQN", "own_agent.Mine"))

    with pytest.raises(UserError, match=r"model is 'own_agent\.Mine', which is not imported"):
        load_policy(dqn_run)
    assert "own_agent" not in sys.modules

    with trusting(["own_agent"]):
        assert type(load_policy(dqn_run).agent).__name__ == "Mine"
