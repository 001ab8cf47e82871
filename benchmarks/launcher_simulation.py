"""Simulate studies on clusters with faults: how long they take, what is lost, and what the driver costs.

    python benchmarks/launcher_simulation.py

The driver is the real one; the machines are simulated (`_simulated_cluster.py`). A makespan is relative to
the ideal, in which all machines work without a pause and without a fault. Lost work is work that was done
again, as a share of all work. The driver's time is processor time; with `--disk`, its files are on the disk.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from _simulated_cluster import Cluster, random_faults
from _simulated_driver import SimulatedFiles, SimulatedLauncher, drive

from lit_gfs.study.cell.files import CellFiles
from lit_gfs.study.cell.task import Task
from lit_gfs.study.lease import LEASE_NAME, Lease, remove_lease
from lit_gfs.study.results.collect import Result, write_result

PLACES = 4
SLOW = 0.25
RETRIES = 20
SHORTEST, LONGEST = 60.0, 540.0
DEATHS = ("kill", "terminate")
SILENCES = ("lost", "unheard", "stall", "unheard stall")


class Scenario(NamedTuple):
    """A cluster and its faults.

    Attributes:
        cells: Number of cells, each of 1 to 9 minutes.
        machines: Number of machines, with `PLACES` places each.
        deaths: Faults of a process in an hour.
        kinds: The kinds of these faults.
        stragglers: Share of machines that have `SLOW` of the speed.
        losses: Losses of a machine in an hour.
        drivers: Number of drivers, each but the last one lost after half of the ideal time; by turns, their
            processes die with them or live on.
    """

    cells: int
    machines: int
    deaths: float = 0.0
    kinds: Sequence[str] = DEATHS
    stragglers: float = 0.0
    losses: float = 0.0
    drivers: int = 1


SCENARIOS = (
    Scenario(100, 8),
    Scenario(1000, 32),
    Scenario(1000, 128),
    Scenario(1000, 32, deaths=1),
    Scenario(1000, 32, deaths=6),
    Scenario(1000, 32, deaths=2, kinds=SILENCES),
    Scenario(1000, 32, stragglers=0.25),
    Scenario(1000, 32, losses=0.5),
    Scenario(1000, 32, drivers=3),
    Scenario(1000, 32, deaths=1, kinds=DEATHS + SILENCES, stragglers=0.25, losses=0.5, drivers=3),
)


class Outside:
    """Counts processor time that is not the driver's."""

    seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Count the time of a block."""
        begun = time.process_time()
        try:
            yield
        finally:
            self.seconds += time.process_time() - begun


class TimedLauncher(SimulatedLauncher):
    """A simulated launcher whose own time is counted as outside."""

    def __init__(self, cluster: Cluster, survives: bool, outside: Outside) -> None:
        super().__init__(cluster, survives=survives)
        self._outside = outside

    def start(self, tasks: Sequence[Task]) -> None:
        """Queue tasks."""
        with self._outside():
            super().start(tasks)

    def wait(self, seconds: float) -> list:
        """Let time pass until a task ends."""
        with self._outside():
            return super().wait(seconds)

    def stop(self) -> None:
        """End all tasks."""
        with self._outside():
            super().stop()


class FilesOnDisk(SimulatedFiles):
    """Files of the simulation that are also on the disk, where the driver reads and writes them."""

    def __init__(
        self, cluster: Cluster, launcher: SimulatedLauncher, directory: Path, outside: Outside
    ) -> None:
        super().__init__(cluster, launcher)
        self._files = CellFiles(directory)
        self._outside = outside
        self._written: set[str] = set()

    def place(self, cell: str) -> Path:
        """Return the directory of a cell."""
        return self._files.place(cell)

    def prepare(self, task: Task) -> None:
        """Make a cell ready to start."""
        with self._outside():
            super().prepare(task)
        self._files.prepare(task)

    def result(self, cell: str) -> Result | None:
        """Read the result of a cell."""
        with self._outside():
            result = super().result(cell)
            if result is not None and cell not in self._written:
                self.place(cell).mkdir(parents=True, exist_ok=True)
                write_result(self.place(cell), result)
                self._written.add(cell)
        return self._files.result(cell)

    def lease(self, cell: str) -> Lease | None:
        """Read the lease of a cell."""
        with self._outside():
            lease = super().lease(cell)
            if lease is None:
                remove_lease(self.place(cell))
            else:
                (self.place(cell) / LEASE_NAME).write_text(json.dumps(lease._asdict()))
        return self._files.lease(cell)

    def revoke(self, cell: str) -> None:
        """Take the lease of a cell away."""
        with self._outside():
            super().revoke(cell)
        self._files.revoke(cell)

    def fail(self, task: Task, error: str, can_resume: bool) -> Result:
        """Write the result of a cell that failed."""
        with self._outside():
            super().fail(task, error, can_resume)
        return self._files.fail(task, error, can_resume)


class Measured(NamedTuple):
    """What a scenario took.

    Attributes:
        makespan: Its time, relative to the ideal.
        restarts: Starts of a process beyond the first one of each cell.
        lost_work: Work that was done again, as a share of all work.
        driver_seconds: Processor time of the driver for each cell.
    """

    makespan: float
    restarts: int
    lost_work: float
    driver_seconds: float


def simulate(scenario: Scenario, seed: int, directory: Path | None = None) -> Measured:
    """Simulate a scenario, and check that every cell has finished once.

    Args:
        scenario: The scenario.
        seed: Draws cells and faults.
        directory: An empty directory for the files of the cells; ``None``: they are in memory.
    """
    draw = random.Random(seed)
    durations = {f"cell_{index}": draw.uniform(SHORTEST, LONGEST) for index in range(scenario.cells)}
    slow = round(scenario.stragglers * scenario.machines)
    speeds = [SLOW] * slow + [1.0] * (scenario.machines - slow)
    work = sum(durations.values())
    ideal = max(work / (PLACES * sum(speeds)), max(durations.values()))
    seconds_between = 3600 / scenario.deaths if scenario.deaths else math.inf
    cluster = Cluster(durations, speeds, PLACES, random_faults(draw, scenario.kinds, seconds_between))
    if scenario.losses:
        for machine in range(scenario.machines):
            moment = draw.expovariate(scenario.losses / 3600)
            while moment < 10 * ideal:
                cluster.at(moment, partial(cluster.lose_machine, machine))
                moment += draw.expovariate(scenario.losses / 3600)

    outside, begun = Outside(), time.process_time()
    for number in range(scenario.drivers):
        is_last = number == scenario.drivers - 1
        launcher = TimedLauncher(cluster, number % 2 == 1, outside)
        lost_at = None if is_last else cluster.now + ideal / 2
        if directory is None:
            drive(cluster, launcher, PLACES * scenario.machines, RETRIES, lost_at)
        else:
            files = FilesOnDisk(cluster, launcher, directory, outside)
            drive(cluster, launcher, PLACES * scenario.machines, RETRIES, lost_at, files, directory)
    driver_seconds = time.process_time() - begun - outside.seconds

    assert cluster.violations == [], cluster.violations
    assert cluster.results.keys() == durations.keys()
    assert all(result.status == "finished" for result in cluster.results.values())
    return Measured(
        makespan=cluster.now / ideal,
        restarts=sum(cluster.begun.values()) - len(durations),
        lost_work=cluster.lost_work / (work + cluster.lost_work),
        driver_seconds=driver_seconds / len(durations),
    )


def row(scenario: Scenario, measured: Measured) -> str:
    """Write a row of the table."""
    faults = "of all kinds" if len(scenario.kinds) > len(SILENCES) else "deaths"
    if scenario.kinds == SILENCES:
        faults = "losses, stalls"
    cells = [
        f"{scenario.cells:,}",
        str(scenario.machines),
        f"{scenario.deaths:g} ({faults})" if scenario.deaths else "0",
        f"{scenario.stragglers:.0%}",
        f"{scenario.losses:g}",
        str(scenario.drivers - 1),
        f"{measured.makespan:.2f}",
        f"{measured.restarts:,}",
        f"{measured.lost_work:.1%}",
        f"{1000 * measured.driver_seconds:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "cells",
    "machines",
    "faults of a process in an hour",
    "stragglers",
    "losses of a machine in an hour",
    "lost drivers",
    "makespan / ideal",
    "restarts",
    "lost work",
    "driver, ms per cell",
)


def main(args: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--cells", type=int, help="cells of every scenario, instead of its own number")
    parser.add_argument("--disk", action="store_true", help="write the files of the cells to the disk")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(args)
    print(f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}", sep="\n", flush=True)
    for scenario in SCENARIOS:
        if arguments.cells is not None:
            scenario = scenario._replace(cells=arguments.cells)
        with tempfile.TemporaryDirectory() as directory:
            measured = simulate(scenario, arguments.seed, Path(directory) if arguments.disk else None)
        print(row(scenario, measured), flush=True)


if __name__ == "__main__":
    main()
