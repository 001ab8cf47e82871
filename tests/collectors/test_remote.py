"""Collection in other processes: rollouts as here, with the weights of their moment, and one end for all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensordict import TensorDictBase

from lit_gfs.agents import DQN, PPO, SAC
from lit_gfs.collectors.direct import DirectCollector
from lit_gfs.collectors.remote import RemoteCollector, RemoteEnvs
from lit_gfs.configuration.config_trust import trusting
from lit_gfs.datamodules import ReplayDataModule, RolloutDataModule
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.errors import EnvironmentFault, UserError
from lit_gfs.utils.ray_cluster import import_ray, keeping_signals
from lit_gfs.utils.seeding import derive_seed, isolated_generators, seed_generators
from support.fakes import Records
from support.training import MakeTrainer

STEPS, SEED = 6, 11
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """Start one Ray instance for all tests."""
    ray = import_ray("these tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where the faulty environments are
        # The processes of Ray cannot import this file.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        with keeping_signals():
            ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield
        ray.shutdown()


class CountedPPO(PPO):
    """Its updates are those that a test says."""

    updates = 0

    @property
    def global_step(self) -> int:
        return self.updates

    def update(self, steps: int) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        self.updates += steps


def agent_of(env_id: str) -> CountedPPO:
    torch.manual_seed(0)
    return CountedPPO(EnvSpec.from_env(make_env(env_id)))


def collector_of(agent: CountedPPO, runs_ahead: bool = False, **options: Any) -> RemoteCollector:
    env = RemoteEnvs(agent.env_spec.env_id, num_envs=2, collectors=2, options=options)
    env.set_seed(SEED)
    collector = RemoteCollector(env, agent, agent.collection_policy(), STEPS, runs_ahead)
    collector.reset()
    return collector


def rollouts_here(
    agent: CountedPPO, number: int, weights: list[dict[str, torch.Tensor]]
) -> list[TensorDictBase]:
    """Collect in this process as remote collector ``number`` does, a rollout with each of some weights."""
    with isolated_generators(CPU):
        seed = derive_seed("collector", SEED, number)
        seed_generators(derive_seed("generators", seed))
        env = make_env(agent.env_spec.env_id, 2)
        env.set_seed(derive_seed("environments", seed))
        options: dict[str, Any] = {"frames_per_batch": 2 * STEPS, "total_frames": -1, "track_traj_ids": False}
        options |= {"trust_policy": True, "auto_register_policy_transforms": False}
        collector = DirectCollector(env, agent.collection_policy(), **options)
        rollouts = []
        for each in weights:
            agent.load_state_dict(each)
            rollouts.append(next(iter(collector)).clone())
        return rollouts


def assert_same(rollout: TensorDictBase, expected: list[TensorDictBase]) -> None:
    parts = rollout.split(2)
    for part, own in zip(parts, expected, strict=True):
        for key in own.keys(include_nested=True, leaves_only=True):
            assert torch.equal(part[key], own[key]), key


def weights(agent: CountedPPO) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in agent.state_dict().items()}


@pytest.mark.usefixtures("one_ray")
def test_rollouts_are_those_of_collectors_here_with_the_weights_of_their_moment() -> None:
    agent = agent_of("CartPole-v1")
    collector = collector_of(agent)
    rollouts = iter(collector)
    seen, first = [next(rollouts)], weights(agent)
    agent.update(3)
    lags, second = [collector.policy_lag], weights(agent)
    seen.append(next(rollouts))
    lags.append(collector.policy_lag)
    # While the agent learns from a rollout, the next one is collected with the weights from before.
    collector._runs_ahead = True
    seen.append(next(rollouts))
    agent.update(5)
    third = weights(agent)
    seen.append(next(rollouts))
    lags.append(collector.policy_lag)
    collector._runs_ahead = False
    agent.update(1)
    seen.append(next(rollouts))
    lags.append(collector.policy_lag)

    assert lags == [0, 0, 5, 1]
    here = [rollouts_here(agent, number, [first, second, second, second, third]) for number in (0, 1)]
    for rollout, *expected in zip(seen, *here, strict=True):
        assert rollout.shape == (4, STEPS)
        assert_same(rollout, expected)

    collector.reset()
    agent.load_state_dict(first)
    assert torch.equal(next(rollouts)["observation"], seen[0]["observation"])

    ray.kill(collector._collector.remote_collectors[1])
    with pytest.raises(
        EnvironmentFault, match=r"^CartPole-v1 lost a remote collector: it was killed, [^\n]*$"
    ):
        next(rollouts)
    collector.shutdown()


def fit(agent: type[Any], data: Any, make_trainer: MakeTrainer, **options: Any) -> Records:
    """Train, and return what was logged."""
    torch.manual_seed(0)
    records = Records()
    trainer = make_trainer(logger=records, log_every_n_steps=2, accelerator="cpu", **options)
    trainer.fit(agent(data.env_spec), data)
    return records


REMOTE: dict[str, Any] = {
    "num_envs": 2,
    "remote_collectors": 2,
    "eval_every": 1000,
    "eval_episodes": 2,
    "seed": 1,
}


@pytest.mark.usefixtures("one_ray")
def test_ppo_counts_the_steps_of_all_collectors_and_says_how_old_their_weights_were(
    make_trainer: MakeTrainer,
) -> None:
    # Without a checkpoint before the end: it would begin all episodes anew, and drop the rollout ahead.
    data = RolloutDataModule(
        "CartPole-v1",
        total_steps=101,
        rollout_steps=8,
        epochs=1,
        minibatches=2,
        overlap=True,
        checkpoint_every=1000,
        **REMOTE,
    )

    rows = fit(PPO, data, make_trainer).rows

    # Four rollouts of 32 steps: the last one was begun before it was known to be too long.
    assert data.env_steps == 128
    lags = [row["collect/policy_lag"] for row in rows.values() if "collect/policy_lag" in row]
    assert lags[:3] == [0, 2, 2]
    returns = [row["train/episode_return"] for row in rows.values() if "train/episode_return" in row]
    lengths = [row["train/episode_length"] for row in rows.values() if "train/episode_length" in row]
    assert returns == lengths != []
    assert rows[128]["eval/episode_length"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize(("agent", "env_id"), [(DQN, "CartPole-v1"), (SAC, "Pendulum-v1")])
def test_replay_is_fed_by_all_collectors(agent: type[Any], env_id: str, make_trainer: MakeTrainer) -> None:
    data = ReplayDataModule(
        env_id, total_steps=101, learning_starts=40, steps_per_update=4, batch_size=8, **REMOTE
    )
    stored: list[TensorDictBase] = []

    class Kept(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            stored.append(data._loader.buffer[:])  # type: ignore[union-attr]

    rows = fit(agent, data, make_trainer, callbacks=[Kept()]).rows

    assert data.env_steps == 104
    (memory,) = stored
    assert len(memory) == 104
    # Each environment's next observation is its observation one vector step later, unless its episode ended.
    steps = memory.view(26, 4)
    ended = steps["next", "done"][:-1].view(25, 4)
    follows = (steps["next", "observation"][:-1] == steps["observation"][1:]).all(-1)
    assert follows[~ended].all()
    assert not torch.equal(steps["observation"][0, :2], steps["observation"][0, 2:])
    assert any("collect/policy_lag" in row for row in rows.values())


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_a_fault_of_a_remote_environment_is_named(make_trainer: MakeTrainer) -> None:
    fault = {"fault": "raise", "number": 1, "at": 20, "rank": 0}
    with trusting(["support.faulty_envs"]):
        data = RolloutDataModule(
            "support.faulty_envs:Faulty-v0", total_steps=200, rollout_steps=8, env_options=fault, **REMOTE
        )
        with pytest.raises(EnvironmentFault, match=r"environment 1 of .* raised ZeroDivisionError: no pole"):
            fit(PPO, data, make_trainer)


def test_without_ray_the_packages_to_install_are_named(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    data = RolloutDataModule("CartPole-v1", total_steps=100, **REMOTE)
    with pytest.raises(UserError, match=r"remote_collectors needs .* run: pip install 'lit-gfs\[ray\]'"):
        fit(PPO, data, make_trainer)


@pytest.mark.parametrize(
    ("address", "error", "kind", "words"),
    [
        ("10.0.0.1:6379", ConnectionError("no"), UserError, "'10.0.0.1:6379', where no Ray cluster answers"),
        (None, Exception("timed out"), EnvironmentFault, "as Ray did not start: Exception: timed out"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(
    address: str | None,
    error: Exception,
    kind: type[Exception],
    words: str,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    data = RolloutDataModule("CartPole-v1", total_steps=100, ray_address=address, **REMOTE)
    with pytest.raises(kind, match=words):
        fit(PPO, data, make_trainer)


@pytest.mark.usefixtures("one_ray")
def test_more_collectors_than_cpus_are_refused(make_trainer: MakeTrainer) -> None:
    data = RolloutDataModule("CartPole-v1", total_steps=100, **{**REMOTE, "remote_collectors": 5})
    with pytest.raises(UserError, match="remote_collectors is 5, but the Ray cluster has 4 CPUs"):
        fit(PPO, data, make_trainer)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"remote_collectors": -1}, "remote_collectors is -1; expected a whole number of at least 0"),
        ({"ray_address": "auto"}, "remote_collectors is 0; expected null"),
        ({"env_id": "tensor/CartPole-v1", "remote_collectors": 2}, "is in tensors; expected 0"),
        ({"env_id": "MinAtar/Stream-v0", "remote_collectors": 2}, "is a stream of tasks; expected 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        RolloutDataModule(**{"env_id": "CartPole-v1", **options})
