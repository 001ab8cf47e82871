"""The benchmark of training speed: its runs, its presets, its bare loops and its clock."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from lit_gfs.agents import DQN, PPO, PQN
from lit_gfs.cli import GradientFlowCLI
from lit_gfs.collectors.env_runner import EnvRunner
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError
from support.specs import continuous_spec, discrete_spec

pytestmark = pytest.mark.usefixtures("empty_directory")

BATCH = 12


@pytest.fixture
def throughput() -> ModuleType:
    return importlib.import_module("throughput")


@pytest.fixture
def raw() -> ModuleType:
    return importlib.import_module("_throughput_raw")


def measure(throughput: ModuleType, *options: str) -> dict[str, Any]:
    throughput.main([*options, "--seconds", "0.4", "--json", "measured.json"])
    return json.loads(Path("measured.json").read_text())


REPLAY = ["--option", "data.steps_per_update=4", "--option", "data.learning_starts=50"]
ROLLOUT = [
    f"--option=data.{each}" for each in ("num_envs=4", "rollout_steps=16", "epochs=2", "minibatches=2")
]


@pytest.mark.parametrize(
    ("agent", "options", "updates_per_step"),
    [("dqn", REPLAY, 1 / 4), ("ppo", ROLLOUT, 4 / 64), ("pqn", ROLLOUT, 4 / 64)],
)
def test_a_run_accounts_for_its_time(
    throughput: ModuleType, agent: str, options: list[str], updates_per_step: float
) -> None:
    collect = EnvRunner.collect

    result = measure(throughput, "--agent", agent, "--env-id", "CartPole-v1", *options)

    fit, limit = result["fit"], result["limit"]
    bare = [limit[part] for part in ("environment", "policy", "update")]
    assert min(bare) > 0
    assert limit["seconds_per_step"] == pytest.approx(sum(bare), rel=1e-4)
    assert limit["steps_per_second"] == pytest.approx(1 / sum(bare), rel=1e-4)
    assert fit["steps_per_second"] == pytest.approx(1 / fit["seconds_per_step"], rel=1e-4)
    assert result["ratio"] == pytest.approx(fit["steps_per_second"] / limit["steps_per_second"], rel=1e-4)
    # Segments hold whole rollouts and all updates that these pay for.
    assert result["updates_per_step"] == pytest.approx(updates_per_step, rel=1e-5)
    parts = result["where"]
    assert set(parts) == {
        *("environment", "policy", "update", "collector", "loader"),
        *("learner", "lightning", "logging", "callbacks"),
    }
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1, abs=1e-4)
    spans = result["spans"]
    assert sum(span["share"] for span in spans.values()) == pytest.approx(1, abs=1e-4)
    assert {"environment.simulate", "policy", "loader", "training_step", "backward", "optimizer"} <= set(
        spans
    )
    assert {"GradientFlowMonitor", "StepProgressBar", "logging", "lightning"} <= set(spans)
    assert all(span["seconds_per_step"] > 0 for span in spans.values())
    loader = sum(span["seconds_per_step"] for span in spans.values() if span["part"] == "loader")
    assert parts["loader"]["seconds_per_step"] == pytest.approx(loader, rel=1e-4)
    assert EnvRunner.collect is collect


def test_interventions_and_options_of_fit_reach_the_run(throughput: ModuleType) -> None:
    result = measure(
        throughput,
        *("--config", "quickstart", "--interventions", "on", "--num-envs", "4"),
        *("--option", "model.trunk.width=16", "--option", "gfs.gradient_flow=null", "--precision", "bf16"),
        *("--clock", "cpu"),
    )

    callbacks = {name for name, span in result["spans"].items() if span["part"] == "callbacks"}
    assert {"TemporalGradientClipping", "UpdateNormalization"} <= callbacks
    assert "GradientFlowMonitor" not in callbacks
    assert result["num_envs"] == 4
    assert result["precision"] == "bf16-mixed"
    assert result["clock"] == "cpu"
    assert result["options"]["model.trunk.width"] == "16"


def test_environments_in_tensors_have_a_bare_loop_too(throughput: ModuleType) -> None:
    result = measure(
        throughput,
        *("--agent", "pqn", "--env-id", "tensor/CartPole-v1", "--num-envs", "4", "--clock", "cpu"),
        *("--option", "model.trunk.width=16", "--option", "data.rollout_steps=16"),
    )

    assert result["simulator"] == "TensorEnv.advance"
    assert result["limit"]["environment"] > 0
    assert result["spans"]["environment.simulate"]["seconds_per_step"] > 0


@pytest.mark.parametrize("agent", ["dqn", "ppo", "pqn"])
def test_with_interventions_a_preset_leaves_clipping_to_them(throughput: ModuleType, agent: str) -> None:
    arguments = argparse.Namespace(
        **{"agent": agent, "env_id": "CartPole-v1", "preset": "cleanrl", "config": None, "num_envs": None},
        **{"precision": None, "option": [], "interventions": "on"},
    )
    command, options, _ = throughput.fit_arguments(arguments)
    assert "trainer.gradient_clip_val" not in options
    assert "recipes/gfs" in command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to measure"),
        (["--config", "quickstart", "--preset", "cleanrl"], "--preset cleanrl needs --agent and --env-id"),
        (["--agent", "dqn", "--option", "model.gamma"], "expected key=value"),
        (["--agent", "dqn", "--env-id", "CartPol-v1"], "did you mean 'CartPole-v1'"),
        (["--config", "label_shuffle"], "names no environment"),
        (["--agent", "ppo", "--option", "trainer.max_steps=3"], "expected a longer run"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    throughput: ModuleType, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        throughput.main([*options, "--seconds", "0.4"])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


# The defaults in the scripts' own `Args`: num_envs, the sizes of an update, gamma, learning rate, clipping.
CLEANRL: dict[tuple[str, str], dict[str, Any]] = {
    ("dqn", "CartPole-v1"): {
        **{"num_envs": 1, "buffer_size": 10_000, "batch_size": 128, "steps_per_update": 10},
        **{"lr": 2.5e-4, "gamma": 0.99, "target_sync_every": 500, "loss_function": "mse", "clip_norm": None},
        **{"epsilon_end": 0.05, "epsilon_decay_steps": 250_000, "clip_reward": False},
    },
    ("dqn", "ALE/Breakout-v5"): {
        **{"num_envs": 1, "buffer_size": 1_000_000, "batch_size": 32, "steps_per_update": 4},
        **{"lr": 1e-4, "gamma": 0.99, "target_sync_every": 1_000, "loss_function": "mse", "clip_norm": None},
        **{"epsilon_end": 0.01, "epsilon_decay_steps": 1_000_000, "clip_reward": True},
    },
    ("ppo", "CartPole-v1"): {
        **{"num_envs": 4, "rollout_steps": 128, "epochs": 4, "minibatches": 4, "lr": 2.5e-4, "gamma": 0.99},
        **{"lambda_": 0.95, "clip": 0.2, "clip_value": 0.2, "entropy_coefficient": 0.01, "clip_norm": 0.5},
        **{"value_coefficient": 0.5, "reward_scale": 1.0, "clip_reward": False},
    },
    ("ppo", "ALE/Breakout-v5"): {
        **{"num_envs": 8, "rollout_steps": 128, "epochs": 4, "minibatches": 4, "lr": 2.5e-4, "gamma": 0.99},
        **{"lambda_": 0.95, "clip": 0.1, "clip_value": 0.1, "entropy_coefficient": 0.01, "clip_norm": 0.5},
        **{"value_coefficient": 0.5, "reward_scale": 1.0, "clip_reward": True},
    },
    ("pqn", "CartPole-v1"): {
        **{"num_envs": 4, "rollout_steps": 128, "epochs": 4, "minibatches": 4, "lr": 2.5e-4, "gamma": 0.99},
        **{"lambda_": 0.65, "epsilon_end": 0.05, "epsilon_decay_steps": 250_000, "clip_norm": 10.0},
        **{"loss_function": "mse", "reward_scale": 1.0, "clip_reward": False},
    },
    ("pqn", "ALE/Breakout-v5"): {
        **{"num_envs": 8, "rollout_steps": 128, "epochs": 4, "minibatches": 4, "lr": 2.5e-4, "gamma": 0.99},
        **{"lambda_": 0.65, "epsilon_end": 0.01, "epsilon_decay_steps": 1_000_000, "clip_norm": 10.0},
        **{"loss_function": "mse", "reward_scale": 1.0, "clip_reward": True},
    },
}

SIZES: dict[tuple[str, str], int] = {
    # Weights and biases of the scripts' networks; 120 and 84 units become two layers of 104.
    ("dqn", "CartPole-v1"): 4 * 104 + 104 + 104 * 104 + 104 + 104 * 2 + 2,
    ("dqn", "ALE/Breakout-v5"): 1_686_180,
    ("ppo", "CartPole-v1"): 2 * (4 * 64 + 64 + 64 * 64 + 64) + 64 * 2 + 2 + 64 + 1,
    ("ppo", "ALE/Breakout-v5"): 1_686_180 + 513,
    ("pqn", "CartPole-v1"): 4 * 104 + 104 + 104 * 104 + 104 + 104 * 2 + 2 + 4 * 104,
    # Per channel where the script has a gain and a shift per position.
    ("pqn", "ALE/Breakout-v5"): 1_686_180 + 2 * (32 + 64 + 64) + 2 * 512,
}


@pytest.mark.parametrize(("agent", "env_id"), list(CLEANRL))
def test_a_preset_builds_the_hyperparameters_of_its_script(
    throughput: ModuleType, monkeypatch: pytest.MonkeyPatch, agent: str, env_id: str
) -> None:
    built: list[GradientFlowCLI] = []
    monkeypatch.setattr(GradientFlowCLI, "_run_subcommand", lambda cli, _: built.append(cli))
    arguments = argparse.Namespace(
        **{"agent": agent, "env_id": env_id, "preset": "cleanrl", "config": None, "num_envs": None},
        **{"precision": None, "option": [], "interventions": "off", "seconds": 1.0, "clock": "wall"},
    )
    with pytest.raises(UserError, match="0 rounds"):
        throughput.measure(arguments)
    (cli,) = built
    model, data, trainer = (getattr(cli, name) for name in ("model", "datamodule", "trainer"))
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = model.build_optimizer(parameters)

    known = {"lr": optimizer.defaults["lr"], "clip_norm": trainer.gradient_clip_val}
    for name, expected in CLEANRL[agent, env_id].items():
        actual = known[name] if name in known else getattr(model, name, getattr(data, name, None))
        assert actual == expected, name
    assert optimizer.defaults["eps"] == (1e-5 if agent == "ppo" else 1e-8)
    assert type(optimizer).__name__ == {"dqn": "Adam", "ppo": "Adam", "pqn": "RAdam"}[agent]
    assert model.anneal_learning_rate is (agent != "dqn")
    assert sum(each.numel() for each in parameters) == SIZES[agent, env_id]
    assert data.env_options == ({"repeat_action_probability": 0.0} if "ALE" in env_id else {})


# -- bare loops ----------------------------------------------------------------------------------------------


def spec(continuous: bool = False) -> EnvSpec:
    return continuous_spec(shape=(5,)) if continuous else discrete_spec(shape=(5,))


def replayed() -> TensorDict:
    next_ = {
        "observation": torch.randn(BATCH, 5),
        "reward": 3 * torch.randn(BATCH, 1),
        **{name: torch.rand(BATCH, 1) < 0.3 for name in ("done", "terminated", "end_of_life")},
    }
    action = torch.randint(3, (BATCH,))
    return TensorDict({"observation": torch.randn(BATCH, 5), "action": action, "next": next_}, [BATCH])


def rolled_out(continuous: bool) -> TensorDict:
    columns = {
        name: torch.randn(BATCH) for name in ("log_prob", "value", "advantage", "value_target", "target")
    }
    sample = torch.randn(BATCH, 2) if continuous else torch.randint(3, (BATCH,))
    observation = torch.randn(BATCH, 5)
    return TensorDict({**columns, "observation": observation, "sample": sample, "action": sample}, [BATCH])


CASES = {
    "dqn": lambda: (DQN(spec(), loss="huber", gamma=0.9), replayed()),
    "double dqn": lambda: (
        DQN(spec(), loss="mse", double=True, clip_reward=True, end_of_life_is_terminal=True),
        replayed(),
    ),
    "pqn": lambda: (PQN(spec()), rolled_out(False)),
    "ppo": lambda: (PPO(spec(), entropy_coefficient=0.1, clip_value=0.2), rolled_out(False)),
    "ppo, raw advantages": lambda: (PPO(spec(), normalize_advantage=False), rolled_out(False)),
    "ppo, continuous": lambda: (
        PPO(spec(True), entropy_coefficient=0.1, normalize_observation=True, shared_network=True),
        rolled_out(True),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bare_loss_is_the_agents_own(raw: ModuleType, case: str) -> None:
    torch.manual_seed(0)
    agent, batch = CASES[case]()
    if isinstance(agent, DQN):  # a target network of its own
        agent.target_network.head.weight.data.normal_()

    parameters, loss = raw.bare_loss(agent, batch)
    bare, own = loss(), agent.loss(batch)
    bare.backward()
    own.backward()

    torch.testing.assert_close(bare, own)
    trained = [each for each in agent.parameters() if each.requires_grad]
    for ours, theirs in zip(parameters, trained, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_bare_update_trains_a_copy_and_clips(raw: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    agent, batch = DQN(spec(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0)), replayed()
    before = [each.clone() for each in agent.parameters()]
    parameters, loss = raw.bare_loss(agent, batch)
    copies = list(parameters)
    start = [each.detach().clone() for each in copies]
    monkeypatch.setattr(raw, "bare_loss", lambda *_: (copies, loss))

    raw.bare_update(agent, batch, 0.01, "norm", contextlib.nullcontext)()

    moved = torch.cat([(now - then).flatten() for now, then in zip(copies, start, strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(0.01, rel=1e-3)
    for now, then in zip(agent.parameters(), before, strict=True):
        assert torch.equal(now, then)


def test_a_bare_simulator_takes_every_step_that_it_is_charged_for(
    raw: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gymnasium.envs.classic_control.acrobot import AcrobotEnv

    steps: list[int] = []
    step = AcrobotEnv.step
    monkeypatch.setattr(AcrobotEnv, "step", lambda env, action: steps.append(1) or step(env, action))

    for work in (raw._gymnasium_single("Acrobot-v1", 3, {}), raw._gymnasium_vector("Acrobot-v1", 3, {})[0]):
        steps.clear()
        work()
        assert len(steps) == 3 * raw.VECTOR_STEPS


@pytest.mark.parametrize(
    ("env_id", "options", "name"),
    [
        ("CartPole-v1", {}, "gymnasium"),
        ("ALE/Pong-v5", {"repeat_action_probability": 0.0}, "AtariVectorEnv"),
        ("dm_control/cartpole-swingup-v0", {"action_repeat": 2}, "dm_control"),
        ("tensor/CartPole-v1", {}, "TensorEnv"),
    ],
)
def test_every_suite_has_a_bare_simulator(
    raw: ModuleType, env_id: str, options: dict[str, Any], name: str
) -> None:
    simulator, work = raw.bare_simulator(env_id, 2, options, torch.device("cpu"))
    assert name in simulator
    assert math.isfinite(raw.seconds_per_call(work, 0.01))


# -- the clock -----------------------------------------------------------------------------------------------


def test_an_inner_span_stops_the_outer_one() -> None:
    module = importlib.import_module("_throughput_spans")
    now = [0.0]

    def work(seconds: float) -> None:
        now[0] += seconds

    spans = module.Spans(lambda: now[0])
    inner = spans.timed("inner", lambda: work(5))

    def around() -> None:
        work(1)
        inner()
        work(2)

    outer = spans.timed("outer", around)
    spans.start()
    work(10)
    outer()
    work(20)
    inner()
    assert spans.stop() == {module.BASE: 30, "outer": 3, "inner": 10}


def test_a_span_ends_with_what_it_raises() -> None:
    module = importlib.import_module("_throughput_spans")
    now = [0.0]
    spans = module.Spans(lambda: now[0])

    def fail() -> None:
        now[0] += 1
        raise StopIteration

    spans.start()
    with pytest.raises(StopIteration):
        spans.timed("failing", fail)()
    now[0] += 2
    assert spans.stop() == {module.BASE: 2, "failing": 1}


def test_what_is_to_be_timed_and_is_gone_is_an_error() -> None:
    module = importlib.import_module("_throughput_spans")
    fit = SimpleNamespace(
        datamodule=SimpleNamespace(runner=SimpleNamespace(env=TensorDict(), _collector=None)),
        **{"train_dataloader": [], "strategy": None, "optimizers": [], "loggers": [], "callbacks": []},
    )

    with pytest.raises(AttributeError, match="no attribute 'step_and_maybe_reset'"):
        module.Instruments(fit, PPO, None, lambda: 0).start()
