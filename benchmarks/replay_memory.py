"""Fill the replay memory of stacked frames; print its size and speed as JSON.

    python benchmarks/replay_memory.py --transitions 1_000_000 --game breakout

The first `--played` transitions come from the real game with random actions. The others are noise, which is
faster, in episodes of `--episode_length` steps that begin like those of the game. The script appends one step
of all environments at a time, as a collector does. For comparison, raw indexing is `tensor[index]` on
ready-made stacks and next stacks, as in a replay memory without frame sharing; it uses only as many as fit
into memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from tensordict import TensorDict

from lit_gfs.buffers.frame_stacks import FrameStackStorage
from lit_gfs.buffers.writer import uniform_replay_buffer

STACK = 4


def play(game: str, num_envs: int) -> Iterator[TensorDict]:
    """Yield transitions ``(num_envs, 1)`` of a game played at random."""
    env = AtariVectorEnv(game, num_envs, autoreset_mode="SameStep", reward_clipping=False)
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    while True:
        action = rng.integers(0, len(env.ale.get_action_set()), num_envs)
        after, reward, terminated, truncated, info = env.step(action)
        next_observation = after.copy()
        done = terminated | truncated
        if done.any():
            next_observation[done] = info["final_obs"][done]
        yield transition(observation, action, next_observation, reward, terminated, truncated)
        observation = after


def make_noise(num_envs: int, episode_length: int) -> Iterator[TensorDict]:
    """Yield transitions ``(num_envs, 1)`` of episodes that end at different times in each environment."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (1000, 84, 84), np.uint8)
    clock = rng.integers(0, episode_length, num_envs)
    never = np.zeros(num_envs, bool)
    observation = np.zeros((num_envs, STACK, 84, 84), np.uint8)
    while True:
        newest = frames[rng.integers(0, len(frames), num_envs)]
        next_observation = np.concatenate([observation[:, 1:], newest[:, None]], 1)
        clock += 1
        ends = clock % episode_length == 0
        yield transition(observation, clock, next_observation, never, ends, never)
        observation = next_observation
        if ends.any():
            observation = next_observation.copy()
            observation[ends, :-1] = 0


def transition(
    observation: np.ndarray,
    action: np.ndarray,
    next_observation: np.ndarray,
    reward: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
) -> TensorDict:
    """Make a collector's output of one step, ``(num_envs, 1)``."""

    def column(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values)[:, None, None]

    return TensorDict(
        {
            "observation": torch.from_numpy(observation)[:, None],
            "action": torch.from_numpy(action.astype(np.int64))[:, None],
            "next": {
                "observation": torch.from_numpy(next_observation)[:, None],
                "reward": column(reward.astype(np.float32)),
                "done": column(terminated | truncated),
                "terminated": column(terminated),
                "truncated": column(truncated),
            },
        },
        [len(action), 1],
    )


def resident_bytes() -> int:
    """Return the memory in use by this process (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def median_us(function: Callable[[], object], repetitions: int = 1000) -> float:
    """Return the median time of a call, in microseconds."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times) * 1e6


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--game", default="breakout", help="a ROM's name in snake_case")
    parser.add_argument("--num_envs", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--played", type=int, default=20_000, help="transitions of the real game")
    parser.add_argument("--episode_length", type=int, default=180, help="steps; Breakout at random has 180")
    parser.add_argument("--raw_stacks", type=int, default=20_000, help="stacks made for raw indexing")
    arguments = parser.parse_args()

    num_envs, batch_size = arguments.num_envs, arguments.batch_size
    buffer = uniform_replay_buffer(FrameStackStorage(arguments.transitions, num_envs), batch_size)
    # One more round than fits, so that the rings wrap.
    steps = arguments.transitions // num_envs * 21 // 20
    played = min(arguments.played // num_envs, steps)
    before = resident_bytes()
    seconds = 0.0
    for source, count in [
        (play(arguments.game, num_envs), played),
        (make_noise(num_envs, arguments.episode_length), steps - played),
    ]:
        for rollout in islice(source, count):
            start = time.perf_counter()
            buffer.extend(rollout)
            seconds += time.perf_counter() - start
        buffer.storage.end_episodes()
    after = resident_bytes()

    sample_us = median_us(buffer.sample)
    raw = buffer[torch.randint(len(buffer), (arguments.raw_stacks,))].contiguous()
    stacks, next_stacks = raw["observation"].clone(), raw["next", "observation"].clone()

    def index_raw() -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.randint(len(stacks), (batch_size,))
        return stacks[index], next_stacks[index]

    raw_us = median_us(index_raw)
    print(
        json.dumps(
            {
                "capacity": buffer.storage.max_size,
                "sampleable": len(buffer),
                "appended": buffer.write_count,
                "resident_before_gb": round(before / 1e9, 3),
                "resident_after_gb": round(after / 1e9, 3),
                "bytes_per_transition": round((after - before) / len(buffer), 1),
                "frame_bytes": 84 * 84,
                "extend_us_per_transition": round(seconds / buffer.write_count * 1e6, 1),
                "batch_size": batch_size,
                "sample_us": round(sample_us, 1),
                "raw_indexing_us": round(raw_us, 1),
                "sample_over_raw": round(sample_us / raw_us, 2),
                "threads": torch.get_num_threads(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
