"""Speed of the batched environments under TorchRL's Collector, as ratios to the libraries they are built on.

Every ratio compares two ways that take turns within one run, so that a busy machine slows both. The policy is
the same everywhere: prepared actions, so that no side pays for a network. The last comparison uses
`lit_gfs.collectors.direct.DirectCollector`, as in training.

    python benchmarks/environments.py --seconds 20 --json environments.json
    python benchmarks/environments.py --seconds 5 --tensors  # environments in tensors against their twins
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.data import TensorSpec
from torchrl.envs import EnvBase

from lit_gfs.collectors.direct import DirectCollector
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs import make_env
from lit_gfs.envs.tensor.suite import tensor_envs

Advance = Callable[[], int]
"""Takes some environment steps and returns their number."""

DRAWN = 256
"""Vector steps with prepared actions."""


class DrawnActions(TensorDictModuleBase):
    """A policy that repeats a table of random actions."""

    in_keys = ["observation"]
    out_keys = ["action"]

    def __init__(self, action_spec: TensorSpec) -> None:
        super().__init__()
        self.actions = cycle([action_spec.rand() for _ in range(DRAWN)])

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the next actions."""
        return tensordict.set("action", next(self.actions))


def drawn_actions(action_spec: TensorSpec) -> Policy:
    """Make the same policy for a `DirectCollector`, which calls it without a tensordict."""
    actions = cycle([action_spec.rand() for _ in range(DRAWN)])
    return Policy(lambda observation: {"action": next(actions)}, ["action"])


def collected(env: EnvBase, vector_steps: int, *, direct: bool = False) -> Advance:
    """Step an environment under a collector with the arguments of training."""
    kind = DirectCollector if direct else Collector
    collector = kind(
        env,
        drawn_actions(env.action_spec) if direct else DrawnActions(env.action_spec),
        frames_per_batch=env.batch_size.numel() * vector_steps,
        total_frames=-1,
        policy_device="cpu",
        env_device="cpu",
        storing_device="cpu",
        track_traj_ids=False,
        trust_policy=True,
        auto_register_policy_transforms=False,
        return_same_td=True,
    )
    rollouts: Iterator[TensorDictBase] = iter(collector)
    return lambda: next(rollouts).numel()


def stepped(simulator: Any, actions: list[Any], num_envs: int, vector_steps: int) -> Advance:
    """Step a gymnasium vector environment in a bare loop."""
    simulator.reset(seed=0)
    position = 0

    def advance() -> int:
        nonlocal position
        for _ in range(vector_steps):
            position = (position + 1) % DRAWN
            simulator.step(actions[position])
        return num_envs * vector_steps

    return advance


def compare(ours: Advance, reference: Advance, seconds: float) -> dict[str, float]:
    """Run two ways in turns; return the medians of their steps per second, and of the ratio per turn."""
    speeds: list[tuple[float, float]] = []
    ours(), reference()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(speeds) < 5:
        # A turn of 0.2 seconds each is shorter than the load changes of a shared machine.
        speeds.append((speed(ours, 0.2), speed(reference, 0.2)))
    return {
        "steps_per_second": round(statistics.median(mine for mine, _ in speeds)),
        "reference_steps_per_second": round(statistics.median(theirs for _, theirs in speeds)),
        "ratio": round(statistics.median(mine / theirs for mine, theirs in speeds), 3),
        "turns": len(speeds),
    }


def speed(advance: Advance, seconds: float) -> float:
    """Return steps per second over at least ``seconds``."""
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        steps += advance()
    return steps / (time.perf_counter() - start)


def atari(game: str, rom: str, seconds: float) -> dict[str, float]:
    """Compare 64 games under a Collector with ALE's batched simulator in a bare loop."""
    from ale_py.vector_env import AtariVectorEnv

    env = make_env(f"ALE/{game}-v5", 64, seed=0)
    simulator = AtariVectorEnv(
        rom, 64, repeat_action_probability=0.25, reward_clipping=False, autoreset_mode="SameStep"
    )
    actions = [env.action_spec.rand().numpy() for _ in range(DRAWN)]
    return compare(collected(env, 16), stepped(simulator, actions, 64, 16), seconds)


def cartpole(seconds: float, *, direct: bool = False) -> dict[str, float]:
    """Compare 64 poles under a collector with gymnasium's batched simulator in a bare loop."""
    import gymnasium

    env = make_env("CartPole-v1", 64, seed=0)
    simulator = gymnasium.make_vec("CartPole-v1", 64, vectorization_mode="vector_entry_point")
    actions = [env.action_spec.rand().numpy() for _ in range(DRAWN)]
    return compare(collected(env, 64, direct=direct), stepped(simulator, actions, 64, 64), seconds)


def tensor_twins(seconds: float) -> dict[str, dict[str, float]]:
    """Compare each environment in tensors with its twin on the CPU, both with random actions and no policy.

    The tensors are on the GPU if there is one. On a CPU, their many small operators take longer than the
    twin's few.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        f"{env_id}_{num_envs}_{device.type}": compare(
            advanced(env_id, num_envs, 16, device),
            advanced(env_id.removeprefix("tensor/"), num_envs, 16),
            seconds,
        )
        for env_id in tensor_envs()
        if not env_id.endswith("-v0")
        for num_envs in (64, 1024)
    }


def advanced(env_id: str, num_envs: int, vector_steps: int, device: torch.device | None = None) -> Advance:
    """Step an environment without a collector; on a device, wait for it at the end alone."""
    env: Any = make_env(env_id, num_envs, seed=0)
    if device is not None:
        env.to(device)
    env.reset()
    drawn = [env.action_spec.rand() for _ in range(DRAWN)]
    actions: Iterator[Any] = cycle(drawn if device is not None else [action.numpy() for action in drawn])

    def advance() -> int:
        for _ in range(vector_steps):
            step = env.advance(next(actions))
        if device is not None:
            step.reward.sum().item()
        return num_envs * vector_steps

    return advance


def cheetah(seconds: float) -> dict[str, float]:
    """Compare 32 cheetahs with TorchRL's own environment, both under a Collector."""
    env = make_env("dm_control/cheetah-run-v0", 32, seed=0)
    from torchrl.envs import DMControlEnv

    reference = DMControlEnv("cheetah", "run", device="cpu")
    return compare(collected(env, 32), collected(reference, 64), seconds)


def libraries(seconds: float) -> dict[str, dict[str, float]]:
    """Compare the environments with the libraries that they are built on; ratios have a target."""
    return {
        "pong_64": {**atari("Pong", "pong", seconds), "target": 0.7},
        "breakout_64": {**atari("Breakout", "breakout", seconds), "target": 0.7},
        "cheetah_run_32": {**cheetah(seconds), "target": 10.0},
        "cartpole_64": {**cartpole(seconds), "target": 0.35},
        "cartpole_64_direct": {**cartpole(seconds, direct=True), "target": 0.35},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--seconds", type=float, default=20.0, help="measuring time of each comparison")
    parser.add_argument("--tensors", action="store_true", help="compare only environments in tensors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        **(tensor_twins(arguments.seconds) if arguments.tensors else libraries(arguments.seconds)),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
