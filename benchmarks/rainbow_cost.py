"""Cost of each part of Rainbow, as a ratio to plain DQN.

An update draws a batch from a filled replay memory, computes DQN's loss and its gradients, and takes a step
of Adam. Networks are those of the quickstart (2 x 256 on vectors, batches of 64 transitions) and of Atari
(the Nature CNN on stacked frames, batches of 32). Agents with one part each, with all of them, and without
any take turns, a few updates at a time, so that other work of the machine slows all of them. The figure is
the median over the turns of an agent's time divided by that of plain DQN in the same turn.

    python benchmarks/rainbow_cost.py --markdown docs/results/rainbow_cost.md
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from lit_gfs.agents import DQN
from lit_gfs.datamodules.replay import make_replay_buffer
from lit_gfs.envs import EnvSpec
from lit_gfs.networks import PlainTrunk
from lit_gfs.utils.library_noise import silence_library_noise

ACTIONS = 6
NUM_ENVS = 8
CAPACITY = 20_000
SHAPES = {"mlp_2x256": (4,), "nature_cnn": (4, 84, 84)}
BATCH_SIZES = {"mlp_2x256": 64, "nature_cnn": 32}
TRUNKS = {"mlp_2x256": (2, 256), "nature_cnn": (1, 512)}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
N_STEP, PRIORITIES = {"n_step": 3}, {"alpha": 0.5, "beta": lambda: 0.4}
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "double": ({"double": True}, {}),
    "dueling": ({"dueling": True}, {}),
    "noisy": ({"noisy": True}, {}),
    "c51": ({"loss": "c51"}, {}),
    "hl_gauss": ({"loss": "hl_gauss"}, {}),
    "n_step": ({}, N_STEP),
    "prioritized": ({}, PRIORITIES),
    "all of Rainbow": (
        {"double": True, "dueling": True, "noisy": True, "loss": "c51"},
        {**N_STEP, **PRIORITIES},
    ),
}
"""Options of the agent and of the replay memory, by the name of the part."""


def make_spec(network: str) -> EnvSpec:
    """Describe an environment whose observations the network takes."""
    is_image = network == "nature_cnn"
    return EnvSpec(
        env_id=network,
        observation_shape=SHAPES[network],
        observation_dtype="uint8" if is_image else "float32",
        num_actions=ACTIONS,
        action_low=None,
        action_high=None,
        frame_skip=1,
        is_frame_stack=is_image,
    )


def make_rollout(network: str, steps: int) -> TensorDict:
    """Make random transitions ``(NUM_ENVS, steps)`` of episodes that end with the rollout."""
    shape = SHAPES[network]
    if network == "nature_cnn":
        frames = torch.randint(256, (NUM_ENVS, steps + 4, *shape[1:]), dtype=torch.uint8)
        stacks = frames.unfold(1, 4, 1).movedim(-1, 2)
        observation, following = stacks[:, :-1], stacks[:, 1:]
    else:
        observation, following = torch.randn(2, NUM_ENVS, steps, *shape)
    ended = torch.zeros(NUM_ENVS, steps, 1, dtype=torch.bool)
    ended[:, -1] = True
    next_ = {
        "observation": following,
        "reward": torch.randn(NUM_ENVS, steps, 1),
        "done": ended,
        "terminated": ended,
        "truncated": torch.zeros_like(ended),
    }
    columns = {"observation": observation, "action": torch.randint(ACTIONS, (NUM_ENVS, steps)), "next": next_}
    return TensorDict(columns, [NUM_ENVS, steps])


class Measured(DQN):
    """DQN without a Trainer: the replay memory is all that it needs."""

    source: Any = None


def make_update(network: str, part: str, transitions: int) -> Callable[[], None]:
    """Return the update of an agent with a part of Rainbow."""
    torch.manual_seed(0)
    of_agent, of_memory = PARTS[part]
    spec = make_spec(network)
    depth, width = TRUNKS[network]
    agent = Measured(spec, trunk=functools.partial(PlainTrunk, depth=depth, width=width), **of_agent)
    optimizer = torch.optim.Adam(agent.q_network.parameters(), lr=1e-4)
    buffer: Any = make_replay_buffer(spec, CAPACITY, NUM_ENVS, BATCH_SIZES[network], **of_memory)
    for _ in range(max(1, transitions // (NUM_ENVS * 100))):
        buffer.extend(make_rollout(network, 100))
    agent.source = buffer

    def update() -> None:
        loss: Tensor = agent.training_step(buffer.sample(), 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def measure(network: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Let agents take turns; return the ratio of each to plain DQN, and its quartiles."""
    clock = CLOCKS[arguments.clock]
    updates = {part: make_update(network, part, arguments.transitions) for part in PARTS}
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    for turn in range(-1, arguments.turns):
        for part, update in updates.items():
            began = clock()
            for _ in range(arguments.updates):
                update()
            if turn >= 0:  # the first turn warms up
                times[part].append((clock() - began) / arguments.updates)
    rows = []
    for part, taken in times.items():
        ratios = [mine / plain for mine, plain in zip(taken, times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "network": network,
                "part": part,
                "ratio": middle,
                "quartiles": [low, high],
                "update_ms": 1e3 * statistics.median(taken),
            }
        )
    return rows


def table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    lines = [
        "# Cost of Rainbow's parts",
        "",
        "Time of an update (draw a batch, loss, gradients, Adam) divided by that of plain DQN: median over "
        "turns, and quartiles. [Rainbow](../rainbow.md) explains the parts.",
        "",
        f"`python benchmarks/rainbow_cost.py --turns {arguments.turns} --updates {arguments.updates} --clock "
        f"{arguments.clock}`, 1 thread, PyTorch {torch.__version__} on a CPU. Agents take turns, so that "
        "other work of the machine slows all of them: ratios count, milliseconds do not.",
        "",
        "| network | part | ratio | update, ms |",
        "|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["quartiles"]
        ratio = f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| {row['network']} | {row['part']} | {ratio} | {row['update_ms']:.2f} |")
    return "\n".join(lines) + "\n"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--updates", type=int, default=10, help="updates of an agent in a turn")
    parser.add_argument("--transitions", type=int, default=8_000, help="transitions in the memory")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu suits a machine that is shared")
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    arguments = parser.parse_args(args)
    silence_library_noise()
    torch.set_num_threads(1)
    rows = [row for network in arguments.networks for row in measure(network, arguments)]
    print(text := table(rows, arguments))
    if arguments.markdown:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
