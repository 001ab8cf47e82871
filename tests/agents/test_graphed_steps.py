"""Agents that act and learn by CUDA graphs learn the same; on a CPU, by the same path uncaptured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gfs.agents import DQN, PPO, PQN, SAC, TD3, Classifier
from lit_gfs.agents.learner import Learner
from lit_gfs.callbacks import (
    CurvatureMonitor,
    GradientNormalization,
    RepresentationMonitor,
    TemporalGradientClipping,
)
from lit_gfs.datamodules import LabelShuffleDataModule, ReplayDataModule, RolloutDataModule
from lit_gfs.networks import PlainTrunk
from lit_gfs.utils import cuda_graphs
from support.fakes import Records
from support.training import MakeTrainer, weights

COMMON: dict[str, Any] = {"num_envs": 2, "total_steps": 96, "eval_every": 48, "eval_episodes": 1, "seed": 3}


def replay() -> ReplayDataModule:
    return ReplayDataModule("CartPole-v1", batch_size=8, learning_starts=16, steps_per_update=4, **COMMON)


def prioritized() -> ReplayDataModule:
    parts = {"n_step": 3, "priority_exponent": 0.5}
    return ReplayDataModule(
        "CartPole-v1", batch_size=8, learning_starts=16, steps_per_update=4, **parts, **COMMON
    )


def control() -> ReplayDataModule:
    return ReplayDataModule(
        "Pendulum-v1", batch_size=8, learning_starts=16, steps_per_update=4, eval_step_limit=20, **COMMON
    )


def rollout(env_id: str = "CartPole-v1") -> RolloutDataModule:
    return RolloutDataModule(env_id, rollout_steps=16, epochs=2, minibatches=2, **COMMON)


def labels() -> LabelShuffleDataModule:
    return LabelShuffleDataModule(samples=200, batch_size=64, shuffle_every=1, epochs=3, eval_every=1, seed=3)


def trunk(in_features: int) -> PlainTrunk:
    return PlainTrunk(in_features, 3, 16)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let CPUs take the path of graphs too; list the captures by what is captured."""
    monkeypatch.setattr(Learner, "graphed_devices", ("cpu", "cuda"))
    found: list[str] = []
    capture = cuda_graphs.Graphed._capture

    def noted(graphed: Any, value: Any, addresses: Any) -> Any:
        found.append("loss" if graphed._train else "policy")
        return capture(graphed, value, addresses)

    monkeypatch.setattr(cuda_graphs.Graphed, "_capture", noted)
    return found


def trained(
    make_trainer: MakeTrainer, make: Callable[..., Learner], data: Any, **options: Any
) -> tuple[Tensor, dict[int, dict[str, float]]]:
    """Train; return the weights and what was logged."""
    torch.manual_seed(7)
    module, logger = make(data.env_spec, trunk=trunk), Records("loss/")
    make_trainer(logger=logger, log_every_n_steps=3, **options).fit(module, data)
    untimed = {
        step: {tag: value for tag, value in row.items() if not tag.startswith("time/")}
        for step, row in logger.rows.items()
    }
    return weights(module), untimed


def ppo(spec: Any, **options: Any) -> PPO:
    return PPO(spec, clip_value=0.2, **options)


def rainbow(spec: Any, **options: Any) -> DQN:
    parts: dict[str, Any] = {"double": True, "dueling": True, "noisy": True, "loss": "c51"}
    return DQN(spec, **parts, **options)


def sac(spec: Any, **options: Any) -> SAC:
    return SAC(spec, normalize_observation=True, **options)


def ddpg(spec: Any, **options: Any) -> TD3:
    return TD3(spec, critics=1, policy_delay=1, **options)


CASES: list[Any] = [
    pytest.param(rainbow, prioritized, ["loss", "policy"], id="rainbow"),
    pytest.param(DQN, replay, ["loss", "policy"], id="dqn"),
    pytest.param(PQN, rollout, ["loss", "policy"], id="pqn"),
    pytest.param(ppo, rollout, ["loss", "policy"], id="ppo"),
    pytest.param(ppo, lambda: rollout("Pendulum-v1"), ["loss", "policy"], id="ppo, continuous"),
    pytest.param(sac, control, ["loss", "policy"], id="sac"),
    pytest.param(ddpg, control, ["loss", "policy"], id="ddpg"),
    pytest.param(Classifier, labels, ["loss"], id="classifier"),
]


@pytest.mark.parametrize(("make", "data", "captured"), CASES)
def test_graphs_change_nothing(
    make: Callable[..., Learner],
    data: Callable[[], Any],
    captured: list[str],
    captures: list[str],
    make_trainer: MakeTrainer,
) -> None:
    def interventions() -> list[Any]:
        return [TemporalGradientClipping(warmup=3), GradientNormalization(strength=1.0)]

    def without(spec: Any, **options: Any) -> Learner:
        return make(spec, cuda_graphs=False, **options)

    ours = trained(make_trainer, make, data(), callbacks=interventions())
    assert sorted(captures) == captured
    expected = trained(make_trainer, without, data(), callbacks=interventions())

    assert sorted(captures) == captured, "cuda_graphs=False captured something"
    torch.testing.assert_close(ours[0], expected[0])
    assert ours[1].keys() == expected[1].keys()
    assert len(ours[1]) > 2
    for step, values in expected[1].items():
        assert ours[1][step] == pytest.approx(values, rel=1e-4, abs=1e-6, nan_ok=True), step


def test_monitors_measure_an_agent_that_learns_by_graphs(
    captures: list[str], make_trainer: MakeTrainer
) -> None:
    monitors = [RepresentationMonitor(every_n_steps=2), CurvatureMonitor(every_n_steps=2)]

    weights_, _ = trained(make_trainer, ppo, rollout(), callbacks=monitors)

    assert weights_.isfinite().all()
    assert captures == ["policy", "loss"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("target_kl", "PPO learns without CUDA graphs: target_kl needs the result of each step"),
        ("hook", "PPO learns without CUDA graphs: a hook watches its networks"),
        ("log", "Logging learns without CUDA graphs: its training_step logs"),
    ],
)
def test_what_cannot_be_captured_runs_as_usual_after_one_line(
    change: str, reason: str, captures: list[str], make_trainer: MakeTrainer
) -> None:
    class Logging(PPO):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("mine", loss)
            return loss

    def make(spec: Any, **options: Any) -> PPO:
        if change == "log":
            return Logging(spec, **options)
        agent = PPO(spec, target_kl=10.0 if change == "target_kl" else None, **options)
        if change == "hook":
            agent.policy_head.register_forward_hook(lambda *_: None)
        return agent

    with pytest.warns(UserWarning, match="CUDA graphs") as warned:
        ours, _ = trained(make_trainer, make, rollout())
    lines = [str(each.message) for each in warned if "CUDA graphs" in str(each.message)]
    assert len(lines) == 1
    assert lines[0].startswith(reason)

    expected, _ = trained(
        make_trainer, lambda spec, **options: PPO(spec, cuda_graphs=False, **options), rollout()
    )
    torch.testing.assert_close(ours, expected)


def test_graphs_are_for_cuda_devices(make_trainer: MakeTrainer) -> None:
    assert Learner.graphed_devices == ("cuda",)
    data = replay()
    agent = DQN(data.env_spec, trunk=trunk)

    make_trainer().fit(agent, data)

    assert agent.uses_cuda_graphs == (agent.device.type == "cuda")
    assert "training_step" not in vars(agent), "a fit leaves no captured step behind"
