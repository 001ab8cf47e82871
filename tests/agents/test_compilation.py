from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from lit_gfs.agents import DQN, PPO, PQN, SAC, TD3
from lit_gfs.agents.classifier import Classifier
from lit_gfs.agents.learner import Learner
from lit_gfs.callbacks import CurvatureMonitor, RepresentationMonitor
from lit_gfs.datamodules import LabelShuffleDataModule, ReplayDataModule, RolloutDataModule
from lit_gfs.errors import UserError
from lit_gfs.networks import PlainTrunk
from lit_gfs.utils.torch_setup import require_compiler
from support.training import MakeTrainer

compile_module = nn.Module.compile
COMMON: dict[str, Any] = {"num_envs": 2, "total_steps": 64, "eval_every": 64, "eval_episodes": 1, "seed": 3}


def replay() -> ReplayDataModule:
    return ReplayDataModule("CartPole-v1", batch_size=8, learning_starts=16, steps_per_update=4, **COMMON)


def control() -> ReplayDataModule:
    return ReplayDataModule("Pendulum-v1", batch_size=8, learning_starts=16, steps_per_update=4, **COMMON)


def rollout() -> RolloutDataModule:
    return RolloutDataModule("CartPole-v1", rollout_steps=16, epochs=1, minibatches=2, **COMMON)


def trunk(in_features: int) -> PlainTrunk:
    return PlainTrunk(in_features, 2, 16)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """List what is compiled, by a backend that needs no C++ compiler."""
    modules: list[nn.Module] = []

    def compile_(module: nn.Module, **options: Any) -> None:
        modules.append(module)
        compile_module(module, backend="aot_eager", **options)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    yield modules
    torch.compiler.reset()


def trained(make_trainer: MakeTrainer, agent: Learner, data: Any, **options: Any) -> dict[str, Tensor]:
    make_trainer(limit_val_batches=0, **options).fit(agent, data)
    return agent.state_dict()


@pytest.mark.parametrize(
    ("agent", "data", "networks"),
    [
        (DQN, replay, 2),
        (PPO, rollout, 2),
        (SAC, control, 5),
        # Their networks are those of DQN and of SAC.
        pytest.param(PQN, rollout, 1, marks=pytest.mark.slow),
        pytest.param(TD3, control, 6, marks=pytest.mark.slow),
    ],
)
def test_compiled_networks_learn_the_same(
    agent: type[Learner],
    data: Callable[[], Any],
    networks: int,
    compiled: list[nn.Module],
    make_trainer: MakeTrainer,
) -> None:
    results = []
    for compile_ in (False, True):
        torch.manual_seed(0)
        source = data()
        results.append(trained(make_trainer, agent(source.env_spec, trunk=trunk, compile=compile_), source))

    assert len(compiled) == networks
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, msg=lambda text, key=key: f"{key}: {text}")


def test_monitors_measure_a_compiled_agent(compiled: list[nn.Module], make_trainer: MakeTrainer) -> None:
    source = rollout()
    representation, curvature = RepresentationMonitor(every_n_steps=1), CurvatureMonitor(every_n_steps=1)
    agent = PPO(source.env_spec, trunk=trunk, compile=True)

    make_trainer(limit_val_batches=0, callbacks=[representation, curvature]).fit(agent, source)

    assert compiled
    # What hooks have seen; differentiating a compiled network twice would have raised.
    assert len(representation._recorder.scores) == 2


def test_a_compiled_classifier_runs_what_was_compiled(
    compiled: list[nn.Module], make_trainer: MakeTrainer
) -> None:
    data = LabelShuffleDataModule("digits", samples=64, batch_size=32, epochs=1, shuffle_every=1)
    model, graphs = Classifier(data.env_spec, trunk=trunk, compile=True), counters["stats"]["unique_graphs"]
    trained(make_trainer, model, data)
    assert compiled == [model.network]
    assert counters["stats"]["unique_graphs"] > graphs


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(UserError, match=r"CXX is 'no-such-compiler', which is not there; install g\+\+ or"):
        require_compiler(torch.device("cpu"))
    require_compiler(torch.device("cuda"))
