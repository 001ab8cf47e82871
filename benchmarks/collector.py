"""Cost of a vector step beyond simulator and policy, under this project's collector and under TorchRL's.

Three ways step the same kind of environment with the same policy, that of a new PPO agent. They take turns
within one run on one thread, so that a busy machine slows all of them. The measure is the process's CPU time:

- bare: the simulator and the policy's function in a loop without storage;
- direct: `lit_gfs.collectors.direct.DirectCollector`;
- torchrl: `torchrl.collectors.Collector`.

    python benchmarks/collector.py --seconds 20 --json collector.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrl.collectors import Collector

from lit_gfs.agents import PPO
from lit_gfs.collectors.direct import DirectCollector
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.base import BatchedEnv

Turn = Callable[[], object]
"""Takes the vector steps of one turn."""

Advance = Callable[[NDArray[Any]], NDArray[Any]]
"""Takes actions and returns the resulting step."""

TARGET_MS = 0.08
"""Maximum cost of a vector step of CartPole beyond simulator and policy, in milliseconds."""


def policy_of(env: BatchedEnv) -> Policy:
    """Make PPO's collection policy, always with the same weights."""
    torch.manual_seed(0)
    return PPO(EnvSpec.from_env(env)).collection_policy()


def bare(env: BatchedEnv, advance: Advance, first: NDArray[Any], vector_steps: int) -> Turn:
    """Step a simulator with the policy's actions."""
    policy = policy_of(env)
    act: Callable[[Tensor], Any] = policy.act
    observation = first

    @torch.no_grad()
    def turn() -> None:
        nonlocal observation
        for _ in range(vector_steps):
            observation = advance(act(torch.from_numpy(observation))["action"].numpy())

    return turn


def collected(kind: type[Collector], env: BatchedEnv, vector_steps: int) -> Turn:
    """Step an environment under a collector with the arguments of training."""
    rollouts = iter(
        kind(
            env,
            policy_of(env),
            frames_per_batch=env.num_envs * vector_steps,
            total_frames=-1,
            policy_device="cpu",
            env_device="cpu",
            storing_device="cpu",
            track_traj_ids=False,
            trust_policy=True,
            auto_register_policy_transforms=False,
            return_same_td=True,
        )
    )
    return lambda: next(rollouts)


def compare(make: Callable[[], BatchedEnv], raw: Any, vector_steps: int, seconds: float) -> dict[str, float]:
    """Run the three ways in turns.

    Args:
        make: Makes the environment.
        raw: Makes the function that steps the bare simulator, and its first observations.
        vector_steps: Vector steps in a turn.
        seconds: Measuring time.

    Returns:
        Milliseconds of a vector step, those beyond the bare loop of the same round, and ratios to that loop.
    """
    turns = {
        "bare": bare(make(), *raw(), vector_steps),
        "direct": collected(DirectCollector, make(), vector_steps),
        "torchrl": collected(Collector, make(), vector_steps),
    }
    times: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        turn()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["bare"]) < 5:
        for name, turn in turns.items():
            start = time.process_time()
            turn()
            times[name].append((time.process_time() - start) * 1e3 / vector_steps)
    result: dict[str, float] = {
        f"{name}_ms": round(statistics.median(each), 4) for name, each in times.items()
    }
    for name in ("direct", "torchrl"):
        pairs = list(zip(times[name], times["bare"], strict=True))
        result[f"{name}_beyond_bare_ms"] = round(statistics.median(mine - base for mine, base in pairs), 4)
        result[f"{name}_ratio"] = round(statistics.median(mine / base for mine, base in pairs), 3)
    return {**result, "turns": len(times["bare"])}


def cartpole(num_envs: int, seconds: float) -> dict[str, float]:
    """Compare with gymnasium's batched simulator."""
    import gymnasium

    def raw() -> tuple[Advance, NDArray[Any]]:
        simulator = gymnasium.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")
        return lambda action: simulator.step(action)[0], simulator.reset(seed=0)[0]

    return compare(lambda: make_env("CartPole-v1", num_envs, seed=0), raw, 32, seconds)


def cheetah(num_envs: int, seconds: float) -> dict[str, float]:
    """Compare with the same simulators (dm_control's, made cheaper) in a loop."""

    def make() -> BatchedEnv:
        return make_env("dm_control/cheetah-run-v0", num_envs, seed=0)

    def raw() -> tuple[Advance, NDArray[Any]]:
        env = make()

        def advance(action: NDArray[Any]) -> NDArray[Any]:
            outcome = env._simulate(action)
            # All episodes end together.
            if outcome.truncated.any():
                return env._restart(np.arange(num_envs), None)["observation"]
            return outcome.observations["observation"]

        return advance, env._restart(np.arange(num_envs), 0)["observation"]

    return compare(make, raw, 16, seconds)


def breakout(num_envs: int, seconds: float) -> dict[str, float]:
    """Compare with ALE's batched simulator."""
    from ale_py.vector_env import AtariVectorEnv

    def raw() -> tuple[Advance, NDArray[Any]]:
        simulator: Any = AtariVectorEnv(
            "breakout",
            num_envs,
            repeat_action_probability=0.25,
            reward_clipping=False,
            autoreset_mode="SameStep",
            num_threads=1,
        )
        return lambda action: simulator.step(action)[0], simulator.reset(seed=0)[0]

    return compare(lambda: make_env("ALE/Breakout-v5", num_envs, seed=0, num_threads=1), raw, 8, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--seconds", type=float, default=20.0, help="measuring time of each comparison")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    }
    for num_envs in (4, 8, 64):
        result[f"cartpole_{num_envs}"] = {
            **cartpole(num_envs, arguments.seconds),
            "target_beyond_bare_ms": TARGET_MS,
        }
    result["cheetah_run_8"] = cheetah(8, arguments.seconds)
    result["breakout_8"] = breakout(8, arguments.seconds)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
