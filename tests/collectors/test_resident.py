"""Rollouts of environments in tensors, which stay on the device of the agent."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_gfs.agents import PPO, PQN
from lit_gfs.collectors.env_runner import EnvRunner
from lit_gfs.collectors.resident import ResidentCollector
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.tensor.graphed import GraphedTransition
from lit_gfs.envs.tensor.suite import tensor_envs
from lit_gfs.utils import cuda_graphs
from support import processes, standin

STEPS = 30
KEYS: list[Any] = [
    "observation",
    "action",
    "value",
    *(("next", key) for key in ("observation", "reward", "done")),
]


def make_agent(kind: Any, env: Any) -> Any:
    torch.manual_seed(0)
    agent = kind(EnvSpec.from_env(env))
    # A name of its own: a second class called PPO would make `model: PPO` ambiguous to the command line.
    agent.__class__ = type(f"Acting{kind.__name__}", (kind,), {"env_steps": 2_000})
    agent.announce_objective_shift = lambda reason: None
    return agent


def make_runner(env: Any, agent: Any, steps: int = STEPS) -> EnvRunner:
    runner = EnvRunner(env, agent, steps, seed=0, rank=0, world_size=1, precision=nullcontext)
    runner.pass_barrier(0)
    return runner


@pytest.mark.parametrize("kind", [PQN, PPO])
def test_a_rollout_has_every_step_in_its_place(kind: Any) -> None:
    env: Any = make_env("tensor/CartPole-v1", 5, max_episode_steps=12)
    runner = make_runner(env, make_agent(kind, env))
    rollout = runner.collect().clone()
    assert isinstance(runner._collector, ResidentCollector)
    assert rollout.batch_size == (5, STEPS)
    assert runner.env_steps == 5 * STEPS

    # The same actions once more, step by step.
    torch.manual_seed(0)
    again: Any = make_env("tensor/CartPole-v1", 5, max_episode_steps=12)
    again.reset()
    first = make_runner(make_env("tensor/CartPole-v1", 5), make_agent(kind, env))
    again.restore(first.state_dict()["environments"])
    for time in range(STEPS):
        assert torch.equal(rollout["observation"][:, time], again.observations["observation"])
        step = again.advance(rollout["action"][:, time])
        assert torch.equal(rollout["next", "observation"][:, time], step.observation)
        for key in ("reward", "done", "terminated", "truncated", "episode_return", "episode_length"):
            value = rollout["next", key][:, time]
            assert value.shape == (5, 1)
            assert torch.equal(value[:, 0], getattr(step, key)), key
    assert rollout["next", "truncated"].any()


def test_shorter_rollouts_go_on_where_the_one_before_ended() -> None:
    rollouts = []
    for lengths in ([8], [5, 3]):
        env: Any = make_env("tensor/Acrobot-v1", 3)
        runner = make_runner(env, make_agent(PQN, env), 8)
        parts: list[Any] = [runner.collect(length).clone() for length in lengths]
        rollouts.append({key: torch.cat([part[key] for part in parts], 1) for key in KEYS})
    assert all(torch.equal(rollouts[0][key], rollouts[1][key]) for key in KEYS)


def test_a_runner_goes_on_from_its_state() -> None:
    env: Any = make_env("tensor/CartPole-v1", 3)
    runner = make_runner(env, make_agent(PQN, env), 8)
    assert runner.is_restorable
    runner.collect()
    state = runner.state_dict()
    expected = runner.collect().clone()
    other = make_runner(make_env("tensor/CartPole-v1", 3), make_agent(PQN, env), 8)
    other.load_state_dict(state)
    assert not other.pass_barrier(1)
    rollout = other.collect()
    assert all(torch.equal(rollout[key], expected[key]) for key in KEYS)


@pytest.mark.parametrize("env_id", ["tensor/CartPole-v1", "tensor/MinAtar/Seaquest-v1"])
def test_rollouts_by_graphs_are_the_same(env_id: str) -> None:
    rollouts = []
    for uses_graphs in (False, True):
        env: Any = make_env(env_id, 3)
        agent = make_agent(PQN, env)
        type(agent).uses_cuda_graphs = uses_graphs
        runner = make_runner(env, agent, 8)
        parts: list[Any] = [runner.collect().clone() for _ in range(4)]
        rollouts.append(torch.cat(parts, 1))
        assert isinstance(env._transition, GraphedTransition) == uses_graphs
        if uses_graphs:
            assert env._transition.is_captured
            # A state from before belongs to the next step, too.
            state, expected = runner.state_dict(), runner.collect().clone()
            runner.load_state_dict(state)
            runner.pass_barrier(1)
            again = runner.collect()
            assert all(torch.equal(again[key], expected[key]) for key in KEYS)
    ordinary, graphed = rollouts
    for key in ordinary.keys(True, True):
        assert torch.equal(ordinary[key], graphed[key]), key
    assert ordinary["next", "done"].any()


def test_an_environment_that_cannot_be_captured_steps_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_graphs, "capture", refuse)
    env: Any = make_env("tensor/CartPole-v1", 3)
    other: Any = make_env("tensor/CartPole-v1", 3, seed=0)
    env.set_seed(0)
    env.use_graphs()
    env.reset()
    other.reset()
    with pytest.warns(UserWarning, match="steps without CUDA graphs: operation not permitted .* capturing$"):
        first = env.advance(torch.tensor([0, 1, 0]))
    assert torch.equal(first.observation, other.advance(torch.tensor([0, 1, 0])).observation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.advance(torch.tensor([0, 1, 0]))


class CrossDeviceCopies(TorchDispatchMode):
    """Notes every operator that touches tensors of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)]
        if len({value.device.type for value in tensors}) > 1 or function in SYNCHRONIZING:
            self.seen.append(str(function))
        return result


SYNCHRONIZING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


@contextmanager
def copies() -> Iterator[list[str]]:
    with CrossDeviceCopies() as counter:
        yield counter.seen


def collect_on_the_device() -> None:
    """Step every environment in tensors on the stand-in for a GPU, and learn from it there."""
    standin.register()
    for env_id in tensor_envs():
        env: Any = make_env(env_id, 4)
        agent = make_agent(PQN, env).to(standin.NAME)
        runner = make_runner(env, agent, 3)
        assert env.device.type == standin.NAME
        for length in (1, 3):
            runner._collector.steps = length
            with torch.no_grad(), copies() as seen:
                rollout: Any = runner._collector.rollout()
            assert seen == [], f"{env_id}: {seen}"
            devices = {rollout[key].device.type for key in rollout.keys(True, True)}
            assert devices == {standin.NAME}
        transitions = agent.process_rollout(rollout)
        assert {value.device.type for value in transitions.values()} == {standin.NAME}
        with copies() as seen:
            env.observations["observation"].cpu()
        assert seen, "a copy is noted"
        on_cpu: Any = make_env(env_id, 4)
        on_cpu.reset()
        assert on_cpu.restore(env.snapshot())
        assert torch.equal(on_cpu.observations["observation"], env.observations["observation"].cpu())


def test_no_step_leaves_the_device(tmp_path: Path) -> None:
    ended = processes.run(["--help"], tmp_path, collect_on_the_device)
    assert ended.status == 0, ended.err
