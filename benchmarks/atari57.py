"""Estimate on paper how long a study of Atari-57 takes on 1, 8 and 64 GPUs, from measured rates.

    python benchmarks/atari57.py

57 games x 3 sizes x 4 recipes x 5 seeds are 3,420 cells of PPO, each with 10 million environment steps (agent
decisions, 40 million frames) and the hyperparameters of `ppo_breakout`. The rates are those of a machine with
16 cores and an NVIDIA H200. Nothing runs here: arithmetic gives the times of cells, and handing them to free
slots, in the order of a study, gives the makespans. docs/results/atari57.md has the table.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

GAMES, SEEDS = 57, 5
STEPS = 10_000_000
"""Environment steps of a cell."""
ENVS, HORIZON, UPDATES = 8, 128, 16
"""Environments of a cell, steps of its rollouts, and updates with 256 transitions after each rollout."""
GPUS = (1, 8, 64)
SECONDS_PER_DAY = 86_400

RECIPES = {"baseline": 1.0, "gfs_first_order": 1.0, "gfs": 1.06, "multiskip_kron": 2.13}
"""Time of an update by recipe, relative to the baseline's: measured on a CPU (recipe_cost.md, kron.json)."""


class Size(NamedTuple):
    """Measured times of a Nature CNN with a trunk of some size, in milliseconds."""

    update: float
    """Of 256 transitions, eager."""
    graphed_update: float
    """The same, as a CUDA graph."""
    policy: float
    """Of 8 observations, eager."""
    graphed_policy: float


SMALL = Size(3.07, 0.882, 0.539, 0.0743)
"""1 x 512."""
LARGE = Size(5.30, 1.826, 1.154, 0.2226)
"""12 x 1536."""
MEDIUM = Size(*(fmean(pair) for pair in zip(SMALL, LARGE, strict=True)))
"""Not measured: the means of the others."""

FIT = 2_336
"""Environment steps per second of ``fit`` with the small network, eager, 8 environments, no evaluation."""
ALE = {8: 5_498, 32: 10_002}
"""Environment steps per second of ALE alone on 16 cores, by the number of environments."""


class Way(NamedTuple):
    """A way of using a GPU and its 16 cores."""

    name: str
    graphed: bool
    cells: int
    """Cells at a time."""


WAYS = (
    Way("one cell, eager", graphed=False, cells=1),
    Way("one cell, CUDA graphs", graphed=True, cells=1),
    Way("four cells, CUDA graphs", graphed=True, cells=4),
)


def network_seconds(size: Size, update: float, graphed: bool) -> float:
    """Return the seconds per environment step that policy and updates take.

    Args:
        size: The size of the network.
        update: Time of an update relative to the baseline's.
        graphed: Whether CUDA graphs are replayed.
    """
    update *= size.graphed_update if graphed else size.update
    policy = size.graphed_policy if graphed else size.policy
    return (policy / ENVS + update * UPDATES / (ENVS * HORIZON)) / 1_000


def steps_per_second(size: Size, update: float, way: Way) -> float:
    """Return the environment steps per second of a cell.

    Of one cell, simulators and networks take turns. Several cells overlap, so the slower of the two decides.
    """
    networks = network_seconds(size, update, way.graphed)
    if way.cells > 1:
        return min(ALE[32], 1 / networks) / way.cells
    if way.graphed:
        return 1 / (1 / ALE[8] + networks)
    # The rest of a step, beside the networks, is the same for all sizes.
    rest = 1 / FIT - network_seconds(SMALL, 1.0, graphed=False)
    return 1 / (rest + networks)


def durations(way: Way) -> list[float]:
    """Return the seconds of all cells, in the order of a study: all of the first seed first."""
    of_a_game = [
        STEPS / steps_per_second(size, update, way)
        for size in (SMALL, MEDIUM, LARGE)
        for update in RECIPES.values()
    ]
    return of_a_game * GAMES * SEEDS


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Return the seconds until the last cell has ended, if each slot takes the next cell once it is free."""
    free = [0.0] * slots
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def table() -> str:
    """Return the table in Markdown."""
    days = " | ".join(f"{gpus} GPUs, days" if gpus > 1 else "1 GPU, days" for gpus in GPUS)
    lines = [
        f"| on each GPU | steps per second: small, large network | {days} | idle, {GPUS[-1]} GPUs |",
        "|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        seconds = durations(way)
        spans = [makespan(seconds, way.cells * gpus) for gpus in GPUS]
        idle = 1 - sum(seconds) / (way.cells * GPUS[-1]) / spans[-1]
        speeds = ", ".join(f"{way.cells * steps_per_second(size, 1.0, way):,.0f}" for size in (SMALL, LARGE))
        times = " | ".join(f"{span / SECONDS_PER_DAY:.1f}" for span in spans)
        lines.append(f"| {way.name} | {speeds} | {times} | {idle:.0%} |")
    return "\n".join(lines)


def fed_cores(size: Size) -> float:
    """Return the number of cores whose ALE steps a GPU with CUDA graphs could learn from."""
    return 16 / (ALE[32] * network_seconds(size, 1.0, graphed=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    print(table())
    print(f"\nA GPU could feed on {fed_cores(SMALL):.0f} (small) or {fed_cores(LARGE):.0f} (large) cores.")
