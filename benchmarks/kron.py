"""Cost of a training step with Kron, in steps with Adam.

A step is forward, backward and optimizer of a plain ReLU network. At the end of its schedule, Kron updates
its factors in 3 of 100 steps; the script times ordinary steps and steps with an update separately, and
weights them accordingly. All optimizers take turns in one process, and ratios are taken within a turn, so
that other work on the machine affects all of them. The measure is processor time in one thread, not wall
time. Every optimizer has its own network with the same initial weights. The script also compares the losses
of Kron and of the library's Kron with the same draws.

    python benchmarks/kron.py --widths 96 384 --batch_sizes 64 256 1024
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lit_gfs.optim import Kron
from lit_gfs.utils.seeding import derive_seed

INPUTS, OUTPUTS = 64, 6
UPDATE_SHARE = 0.03  # of the steps, from step 4,000 on
FITTING_STEPS = 5  # with an update each, before the first measurement


class LibraryKron(pytorch_optimizer.Kron):
    """The library's optimizer with the draws of ours, for the comparison of losses."""

    def step(self, closure: Any = None) -> Any:
        """Update the parameters."""
        seed = derive_seed("kron", 0, self.param_groups[0].get("step", 0))
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the library draws from it
        return super().step(closure)


class Trainee(NamedTuple):
    """A network, its optimizer and its data."""

    net: nn.Sequential
    optimizer: Optimizer
    inputs: Tensor
    targets: Tensor

    def step(self) -> float:
        """Train one step; return its loss."""
        self.optimizer.zero_grad()
        loss = (self.net(self.inputs) - self.targets).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def seconds(self, steps: int, update_probability: float | None = None) -> float:
        """Measure steps after a first one that does not count; return the median."""
        if update_probability is not None:
            group = self.optimizer.param_groups[0]
            group.update(pre_conditioner_update_probability=update_probability, update_counter=0)
        self.step()
        times = []
        for _ in range(steps):
            began = time.process_time()
            self.step()
            times.append(time.process_time() - began)
        return statistics.median(times)


def make_trainee(width: int, batch_size: int, arguments: argparse.Namespace, optimizer: str) -> Trainee:
    torch.manual_seed(0)
    sizes = [INPUTS, *[width] * arguments.depth]
    layers = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(sizes)]
    net = nn.Sequential(*layers, nn.Linear(width, OUTPUTS))
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight, 2**0.5)
            nn.init.zeros_(module.bias)
    made: dict[str, Any] = {
        "adam": lambda: Adam(net.parameters(), lr=1e-4),
        "adam_fused": lambda: Adam(net.parameters(), lr=1e-4, fused=True),
        "kron": lambda: Kron(net.parameters(), lr=3e-5, seed=0),
        "library": lambda: LibraryKron(net.parameters(), lr=3e-5),
    }
    return Trainee(net, made[optimizer](), torch.randn(batch_size, INPUTS), torch.randn(batch_size, OUTPUTS))


def turns(width: int, batch_size: int, arguments: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Yield, turn by turn, the cost of a step of each optimizer in steps of Adam."""
    names = ("adam", "adam_fused", "kron", "library")
    trainees = {name: make_trainee(width, batch_size, arguments, name) for name in names}
    for trainee in trainees.values():
        for _ in range(FITTING_STEPS):
            trainee.step()
    for _ in range(arguments.turns):
        adam = trainees["adam"].seconds(arguments.steps)
        fused = trainees["adam_fused"].seconds(arguments.steps)
        turn = {"adam_ms": 1e3 * adam, "adam_fused": fused / adam}
        for name in ("kron", "library"):
            ordinary = trainees[name].seconds(arguments.steps, update_probability=0.0) / adam
            update = trainees[name].seconds(1, update_probability=1.0) / adam
            turn |= {
                name: (1 - UPDATE_SHARE) * ordinary + UPDATE_SHARE * update,
                f"{name}_ordinary": ordinary,
                f"{name}_update": update,
            }
        yield turn


def loss_difference(width: int, batch_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train with Kron and the library's Kron; return the largest relative difference of their losses."""
    ours, theirs = (make_trainee(width, batch_size, arguments, name) for name in ("kron", "library"))
    pairs = [(ours.step(), theirs.step()) for _ in range(arguments.loss_steps)]
    largest = max(abs(our - their) / abs(their) for our, their in pairs)
    return {"steps": len(pairs), "first_loss": pairs[0][0], "last_loss": pairs[-1][0], "difference": largest}


def measure(width: int, batch_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    measured = list(turns(width, batch_size, arguments))
    medians = {name: statistics.median(turn[name] for turn in measured) for name in measured[0]}
    quartiles = statistics.quantiles([turn["kron"] for turn in measured], n=4)
    row: dict[str, Any] = {"width": width, "batch_size": batch_size}
    row |= {name: round(value, 3) for name, value in medians.items()}
    row["kron_quartiles"] = [round(quartile, 3) for quartile in quartiles[::2]]
    if arguments.loss_steps:
        row["losses"] = loss_difference(width, batch_size, arguments)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[96, 384])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--depth", type=int, default=12, help="hidden layers")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="steps of each kind in a turn")
    parser.add_argument("--loss_steps", type=int, default=20, help="steps over which losses are compared")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(width, batch_size, arguments)
        for width in arguments.widths
        for batch_size in arguments.batch_sizes
    ]
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
