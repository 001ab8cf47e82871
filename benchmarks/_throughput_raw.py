"""The machine's limit: a fit's three kinds of work, each alone in a bare loop.

These loops contain only the modules whose speed they measure: no collector, no TensorDict, no Lightning, no
logging.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gfs.agents import DQN, PPO, Agent
from lit_gfs.agents.q_learning import QLearningAgent
from lit_gfs.envs import make_env
from lit_gfs.envs.gymnasium import is_natively_batched, quietly
from lit_gfs.functional.losses import gaussian_entropy, gaussian_log_prob
from lit_gfs.functional.returns import learner_reward
from lit_gfs.optim.factory import make_optimizer

Clock = Callable[[], float]
Work = Callable[[], Any]

DRAWN = 256
"""Vector steps with prepared actions."""

VECTOR_STEPS = 16
"""Vector steps, and policy calls, between two looks at the clock."""


def seconds_per_call(work: Work, at_least: float, clock: Clock = time.perf_counter) -> float:
    """Repeat some work for ``at_least`` seconds; return the seconds per call."""
    synchronize()
    calls, start = 0, clock()
    while clock() - start < at_least:
        work()
        calls += 1
    synchronize()
    return (clock() - start) / calls


def synchronize() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class RawParts:
    """Environment, policy and update of a fit, for bare loops.

    Args:
        trainer: The Trainer of the fit.
        agent: Its agent; networks are copied.
        batch: A batch of the fit, repeated in every raw update.
        clock: Returns the seconds.
    """

    def __init__(self, trainer: Trainer, agent: Agent, batch: Any, clock: Clock) -> None:
        known: Any = trainer
        self._clock = clock
        data = known.datamodule
        self.num_envs: int = data.num_envs
        self._precision: Callable[[], AbstractContextManager] = known.precision_plugin.forward_context
        self.simulator, self._environment = bare_simulator(
            data.env_id, data.num_envs, data.env_options, agent.device
        )
        observation = batch["observation"][torch.arange(data.num_envs) % len(batch)].clone()
        network: nn.Module = agent.actor_critic if isinstance(agent, PPO) else agent.q_network  # type: ignore[union-attr]
        self._policy = bare_policy(network, observation, self._precision)
        self._update = bare_update(
            agent, batch.clone(), known.gradient_clip_val, known.gradient_clip_algorithm, self._precision
        )

    def environment_seconds(self, at_least: float) -> float:
        """Return the seconds of simulation per environment step."""
        return seconds_per_call(self._environment, at_least, self._clock) / (VECTOR_STEPS * self.num_envs)

    def policy_seconds(self, at_least: float) -> float:
        """Return the seconds of inference per environment step: one call for each vector step."""
        with torch.no_grad():
            return seconds_per_call(self._policy, at_least, self._clock) / (VECTOR_STEPS * self.num_envs)

    def update_seconds(self, at_least: float) -> float:
        """Return the seconds of one optimizer step."""
        with torch.enable_grad():
            return seconds_per_call(self._update, at_least, self._clock)


# -- environment ---------------------------------------------------------------------------------------------


def bare_simulator(
    env_id: str, num_envs: int, options: dict[str, Any], device: torch.device
) -> tuple[str, Work]:
    """Return the fastest of the suite's own ways to step this many environments, and its name.

    The work is `VECTOR_STEPS` vector steps with prepared actions; after an episode ends, the next one begins.
    Environments in tensors step on the given device.
    """
    if env_id.startswith("tensor/"):
        return "TensorEnv.advance", _tensor(env_id, num_envs, options, device)
    if env_id.startswith("ALE/"):
        return "ale_py.vector_env.AtariVectorEnv", _atari(env_id, num_envs, options)
    if env_id.startswith("dm_control/"):
        return f"dm_control x {num_envs}", _dm_control(env_id, num_envs, options)
    vector, name = _gymnasium_vector(env_id, num_envs, options)
    candidates = {name: vector, f"gymnasium.make x {num_envs}": _gymnasium_single(env_id, num_envs, options)}
    for work in candidates.values():
        work()
    # Batching pays with many light simulators, but not with a few.
    name = min(candidates, key=lambda each: min(seconds_per_call(candidates[each], 0.02) for _ in range(5)))
    return name, candidates[name]


def _vector_steps(simulator: Any, drawn: Iterable[Any]) -> Work:
    actions = itertools.cycle(list(drawn))

    def work() -> None:
        for _ in range(VECTOR_STEPS):
            simulator.step(next(actions))

    return work


def _atari(env_id: str, num_envs: int, options: dict[str, Any]) -> Work:
    env: Any = make_env(env_id, num_envs, seed=0, **options)
    simulator = env._simulators["observation"]  # ALE's own, with the options of the fit
    simulator.reset(seed=np.arange(num_envs))
    return _vector_steps(simulator, (env.action_spec.rand().numpy() for _ in range(DRAWN)))


def _gymnasium_vector(env_id: str, num_envs: int, options: dict[str, Any]) -> tuple[Work, str]:
    mode: dict[str, Any] = {"vectorization_mode": "vector_entry_point"}
    if not is_natively_batched(env_id):
        kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP}
        mode = {"vectorization_mode": "sync", "vector_kwargs": kwargs}
    with quietly():
        simulator = gymnasium.make_vec(env_id, num_envs, **mode, **options)
    simulator.reset(seed=0)
    simulator.action_space.seed(0)
    name = f"gymnasium.vector.{type(simulator.unwrapped).__name__}"
    return _vector_steps(simulator, (simulator.action_space.sample() for _ in range(DRAWN))), name


def _gymnasium_single(env_id: str, num_envs: int, options: dict[str, Any]) -> Work:
    with quietly():
        simulators = [gymnasium.make(env_id, disable_env_checker=True, **options) for _ in range(num_envs)]
    space = simulators[0].action_space
    space.seed(0)
    for index, simulator in enumerate(simulators):
        simulator.reset(seed=index)
    actions = itertools.cycle([space.sample() for _ in range(DRAWN)])

    def work() -> None:
        for _ in range(VECTOR_STEPS):
            for simulator in simulators:
                _, _, terminated, truncated, _ = simulator.step(next(actions))
                if terminated or truncated:
                    simulator.reset()

    return work


def _tensor(env_id: str, num_envs: int, options: dict[str, Any], device: torch.device) -> Work:
    env: Any = make_env(env_id, num_envs, seed=0, **options).to(device)
    if device.type == "cuda":
        env.use_graphs()
    env.reset()
    actions = itertools.cycle([env.action_spec.rand().to(device) for _ in range(DRAWN)])

    @torch.no_grad()
    def work() -> None:
        for _ in range(VECTOR_STEPS):
            env.advance(next(actions))

    return work


def _dm_control(env_id: str, num_envs: int, options: dict[str, Any]) -> Work:
    from lit_gfs.envs.dm_control import dm_control_tasks, suite

    tasks = [suite.load(*dm_control_tasks()[env_id], task_kwargs={"random": 0}) for _ in range(num_envs)]
    bounds, generator = tasks[0].action_spec(), np.random.default_rng(0)
    low, high = np.clip(bounds.minimum, -1, 0), np.clip(bounds.maximum, 0, 1)
    actions = itertools.cycle([generator.uniform(low, high) for _ in range(DRAWN)])
    repeats = options.get("action_repeat", 1)

    def work() -> None:
        for _ in range(VECTOR_STEPS):
            for task in tasks:
                action = next(actions)
                for _ in range(repeats):
                    task.step(action)  # begins the next episode if one has ended

    return work


# -- policy and update ---------------------------------------------------------------------------------------


def bare_policy(
    network: nn.Module, observation: Tensor, precision: Callable[[], AbstractContextManager]
) -> Work:
    """Return the work of `VECTOR_STEPS` forward passes of a batch of observations."""
    network = copy.deepcopy(network)

    @torch.no_grad()
    def call() -> None:
        with precision():
            network(observation)

    once = graphed(call, observation.device)

    def work() -> None:
        for _ in range(VECTOR_STEPS):
            once()

    return work


def graphed(work: Work, device: torch.device) -> Work:
    """Return some work as a CUDA graph, which is what a GPU allows; on other devices, the work itself."""
    if device.type != "cuda":
        return work
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries are set up before a capture
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def bare_update(
    agent: Agent,
    batch: Any,
    clip: float | None,
    clip_algorithm: str | None,
    precision: Callable[[], AbstractContextManager],
) -> Work:
    """Return the work of one optimizer step on a fixed batch: loss, gradients, clipping, step."""
    parameters, loss = bare_loss(agent, batch)
    trained = list(parameters)
    optimizer = make_optimizer(agent.build_optimizer, trained)
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = trained[0].is_cuda

    def work() -> None:
        with precision():
            value = loss()
        optimizer.zero_grad()
        value.backward()
        if clip and clip_algorithm == "value":
            nn.utils.clip_grad_value_(trained, clip)
        elif clip:
            nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()

    with torch.enable_grad():
        return graphed(work, trained[0].device)


def bare_loss(agent: Agent, batch: Any) -> tuple[Iterable[nn.Parameter], Callable[[], Tensor]]:
    """Return the trained parameters of a copy of the networks, and their loss on a batch in plain PyTorch."""
    if isinstance(agent, PPO):
        return _ppo_loss(agent, batch)
    if isinstance(agent, QLearningAgent):
        return _q_loss(agent, batch)
    raise TypeError(f"no bare loop for {type(agent).__name__}")


def _q_loss(agent: QLearningAgent, batch: Any) -> tuple[Iterable[nn.Parameter], Callable[[], Tensor]]:
    network = copy.deepcopy(agent.q_network)
    observation, action = batch["observation"], batch["action"].long().unsqueeze(-1)
    error = F.huber_loss if agent.loss_function == "huber" else F.mse_loss
    if isinstance(agent, DQN):
        target = _bootstrapped_target(agent, network, batch["next"])
    else:
        fixed = batch["target"]
        target = lambda: fixed  # noqa: E731
    return network.parameters(), lambda: error(network(observation).gather(-1, action).squeeze(-1), target())


def _bootstrapped_target(agent: DQN, network: nn.Module, next_: Any) -> Callable[[], Tensor]:
    target_network = copy.deepcopy(agent.target_network)
    reward, _, terminated = learner_reward(
        next_, agent.reward_scale, agent.clip_reward, agent.end_of_life_is_terminal
    )
    discount, observation = agent.gamma * (~terminated).float(), next_["observation"]

    @torch.no_grad()
    def target() -> Tensor:
        values = target_network(observation)
        if agent.uses_double_q:
            best = values.gather(-1, network(observation).argmax(-1, keepdim=True)).squeeze(-1)
        else:
            best = values.amax(-1)
        return reward + discount * best

    return target


def _ppo_loss(agent: PPO, batch: Any) -> tuple[Iterable[nn.Parameter], Callable[[], Tensor]]:
    network = copy.deepcopy(agent.actor_critic)
    names = ("observation", "sample", "log_prob", "advantage", "value", "value_target")
    observation, sample, old_log_prob, raw_advantage, old_value, value_target = (
        batch[name] for name in names
    )
    discrete, clip, clip_value = agent.env_spec.is_discrete, agent.clip, agent.clip_value

    def loss() -> Tensor:
        output, value = network(observation)
        if discrete:
            log_probs = output.log_softmax(-1)
            log_prob = log_probs.gather(-1, sample.unsqueeze(-1)).squeeze(-1)
            entropy = -(log_probs.exp() * log_probs).sum(-1)
        else:
            log_prob = gaussian_log_prob(output, network.log_std, sample)
            entropy = gaussian_entropy(network.log_std)
        advantage = raw_advantage
        if agent.normalize_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = (log_prob - old_log_prob).exp()
        policy = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
        squared = (value - value_target).square()
        if clip_value is not None:
            moved = old_value + (value - old_value).clamp(-clip_value, clip_value)
            squared = torch.maximum(squared, (moved - value_target).square())
        critic = 0.5 * squared.mean()
        return agent.value_coefficient * critic - policy - agent.entropy_coefficient * entropy.mean()

    return network.parameters(), loss
