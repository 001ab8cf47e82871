"""A cluster that runs no process: machines, cells and their leases by a clock of their own.

A `Cluster` outlives the drivers of its cells (`_simulated_driver.py`): others may follow those that are lost.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from lit_gfs.study.cell.task import Task
from lit_gfs.study.launchers.launcher import Ending
from lit_gfs.study.lease import LEASE_SECONDS, RENEWAL_SECONDS, LeaseLost
from lit_gfs.study.results.collect import Result
from lit_gfs.study.results.table import FAILED, FINISHED

if TYPE_CHECKING:
    from _simulated_driver import SimulatedLauncher

CHECKPOINT_SECONDS = 60.0
"""Work between two checkpoints of a cell."""
START_SECONDS = 5.0
"""Time from a free place to the work of a process: imports."""
DETECTION_SECONDS = 30.0
"""Time from the loss of a machine to the launcher's word about it."""
REPAIR_SECONDS = 300.0
STALL_SECONDS = LEASE_SECONDS + 40


class Fault(NamedTuple):
    """What befalls a process.

    Attributes:
        kind: ``kill`` (SIGKILL), ``terminate`` (SIGTERM), ``lost`` (with its machine), ``unheard`` (its
            launcher takes it for lost, but it goes on), ``stall`` (it stands still for longer than a lease
            lasts), or ``unheard stall`` (both).
        after: When, in seconds after it began to work.
    """

    kind: str
    after: float


@dataclass(eq=False)
class Process:
    """A process of a cell, waiting for a place, or at work on a machine."""

    task: Task
    launcher: SimulatedLauncher
    owner: str = ""
    machine: int | None = None
    began: float = 0.0
    done_before: float = 0.0
    speed: float = 1.0
    stalled: list[tuple[float, float]] = field(default_factory=list)
    frozen_beat: int | None = None
    saved: float = 0.0
    has_ended: bool = False
    is_heard: bool = True

    @property
    def name(self) -> str:
        """The cell's name."""
        return self.task.cell.name

    def seconds(self, now: float) -> float:
        """Return how long it has been at work."""
        return now - self.began - sum(max(0.0, min(end, now) - begin) for begin, end in self.stalled)

    def work(self, now: float) -> float:
        """Return how much of the cell is done, in seconds of a machine of speed 1."""
        return self.done_before + self.seconds(now) * self.speed

    def beat(self, now: float) -> int:
        """Return how often it has renewed its lease."""
        return int(self.seconds(now) / RENEWAL_SECONDS)

    def checkpoint(self, now: float) -> float:
        """Return the work up to its last checkpoint."""
        return max(self.done_before, self.work(now) // CHECKPOINT_SECONDS * CHECKPOINT_SECONDS)

    def has_been_still(self, now: float) -> float:
        """Return for how many seconds it has shown no sign of life, up to its first renewal after a stall."""
        still = [now - begin for begin, end in self.stalled if begin <= now < end + RENEWAL_SECONDS]
        return max([0.0, *still])


class Cluster:
    """Machines with places for cells.

    Args:
        durations: Seconds of work of each cell, by name, on a machine of speed 1.
        speeds: The speed of each machine.
        places: Places on each machine.
        fault_of: Returns what befalls the n-th process of a cell, counted from 0; ``None`` for nothing.
        failing: Cells whose fits raise an error at their end.
    """

    def __init__(
        self,
        durations: dict[str, float],
        speeds: Sequence[float],
        places: int,
        fault_of: Callable[[str, int], Fault | None],
        failing: Sequence[str] = (),
    ) -> None:
        self.now = 0.0
        self.durations = durations
        self._speeds = list(speeds)
        self._places = places
        self._free = [machine for _ in range(places) for machine in range(len(speeds))]
        self._broken: set[int] = set()
        self._fault_of = fault_of
        self._failing = set(failing)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._queue: deque[Process] = deque()
        self._at_work: defaultdict[str, list[Process]] = defaultdict(list)
        # What is on the shared disk.
        self.leases: dict[str, tuple[str, Process]] = {}
        self.results: dict[str, Result] = {}
        self._checkpoints: dict[str, float] = {}
        self._finished: set[str] = set()
        # What happened, for the invariants.
        self.begun: Counter[str] = Counter()
        self.begun_by: Counter[tuple[SimulatedLauncher, str]] = Counter()
        self.deaths: Counter[str] = Counter()
        self.outdone: Counter[str] = Counter()
        """Processes that ended because another one had their lease."""
        self.violations: list[str] = []
        self.lost_work = 0.0

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Plan an event."""
        heapq.heappush(self._events, (time, next(self._order), event))

    def advance(self, until: float, is_over: Callable[[], bool]) -> None:
        """Let time pass, until a time or until something is over."""
        while not is_over() and self._events and self._events[0][0] <= until:
            time, _, event = heapq.heappop(self._events)
            self.now = max(self.now, time)
            event()
        if not is_over():
            self.now = until

    def submit(self, process: Process) -> None:
        """Put a process into the queue."""
        self._queue.append(process)
        self._place()

    def lose_machine(self, machine: int, repair: float = REPAIR_SECONDS) -> None:
        """Lose a machine with all that runs there; it comes back later."""
        if machine in self._broken:
            return
        self._broken.add(machine)
        self._free = [place for place in self._free if place != machine]
        for process in [each for processes in self._at_work.values() for each in processes]:
            if process.machine == machine:
                self._die(process, None)
        self.at(self.now + repair, lambda: self._repair(machine))

    def end_all(self, launcher: SimulatedLauncher) -> None:
        """End all processes of a launcher, and take its tasks out of the queue."""
        self._queue = deque(each for each in self._queue if each.launcher is not launcher)
        for process in [each for processes in self._at_work.values() for each in processes]:
            if process.launcher is launcher:
                self._die(process, -15, keeps_lease=launcher.is_lost)

    def take_away(self, cell: str) -> Process | None:
        """Remove the lease of a cell; its process finds out at its next renewal."""
        if cell not in self.leases:
            return None
        _, process = self.leases[cell]
        self._save(process)
        del self.leases[cell]
        if process.has_ended:
            return None
        wake = max([self.now, *(end for begin, end in process.stalled if begin <= self.now < end)])

        def look() -> None:
            if not process.has_ended and not self._holds(process):
                self._die(process, LeaseLost.status)

        self.at(wake + RENEWAL_SECONDS, look)
        return process

    def _save(self, process: Process) -> None:
        """Note the last checkpoint of a process, which others may resume from, if it has the lease."""
        if self._holds(process) and not process.has_ended:
            process.saved = self._checkpoints[process.name] = process.checkpoint(self.now)

    def _holds(self, process: Process) -> bool:
        return self.leases.get(process.name, ("", None))[0] == process.owner

    def _repair(self, machine: int) -> None:
        self._broken.discard(machine)
        self._free += [machine] * self._places
        self._place()

    def _place(self) -> None:
        while self._queue and self._free:
            process = self._queue.popleft()
            process.machine = self._free.pop()
            self._at_work[process.name].append(process)
            self.at(self.now + START_SECONDS, partial(self._begin, process))

    def _begin(self, process: Process) -> None:
        if process.has_ended:
            return
        name = process.name
        process.began = self.now
        if name in self.leases:
            self._die(process, LeaseLost.status)
            return
        if name in self.results:
            self._die(process, 0)
            return
        if name in self._finished:
            self.violations.append(f"{name} runs again although it had finished")
        process.owner = f"{name} {self.begun[name]}"
        process.speed = self._speeds[process.machine]  # type: ignore[index]
        process.done_before = process.saved = self._checkpoints.get(name, 0.0)
        fault = self._fault_of(name, self.begun[name])
        self.begun[name] += 1
        self.begun_by[process.launcher, name] += 1
        self.leases[name] = (process.owner, process)
        self._plan_end(process)
        if fault is not None:
            self.at(self.now + fault.after, lambda: self._befall(process, fault.kind))

    def _plan_end(self, process: Process) -> None:
        left = (self.durations[process.name] - process.work(self.now)) / process.speed
        pause = sum(max(0.0, end - max(begin, self.now)) for begin, end in process.stalled)
        self.at(self.now + max(0.0, left) + pause, lambda: self._finish(process))

    def _finish(self, process: Process) -> None:
        if process.has_ended:
            return
        if self.durations[process.name] - process.work(self.now) > 1e-6:  # it stood still meanwhile
            self._plan_end(process)
            return
        if not self._holds(process):
            self._die(process, LeaseLost.status)
            return
        name = process.name
        status = FAILED if name in self._failing else FINISHED
        self._finished.add(name)
        self.results[name] = Result(name, process.task.cell.arguments, process.task.command, status)
        self._die(process, 0)

    def _befall(self, process: Process, kind: str) -> None:
        if process.has_ended:
            return
        if "unheard" in kind and process.is_heard:
            process.is_heard = False
            process.launcher.hear(Ending(process.name, None, "no word from its machine"))
        if "stall" in kind:
            process.stalled.append((self.now, self.now + STALL_SECONDS))
        if kind == "lost":
            self._die(process, None)
        elif kind in ("kill", "terminate"):
            self._die(process, -9 if kind == "kill" else 128 + 15, keeps_lease=kind == "kill")

    def _die(self, process: Process, status: int | None, keeps_lease: bool = False) -> None:
        name = process.name
        self._at_work[name].remove(process)
        if process.machine not in self._broken:
            self._free.append(process.machine)  # type: ignore[arg-type]
        if process.owner:
            self._save(process)
            if status != 0:
                self.lost_work += process.work(self.now) - process.saved
                (self.outdone if status == LeaseLost.status else self.deaths)[name] += 1
            if self._holds(process):
                process.frozen_beat = process.beat(self.now)
                if status is not None and not keeps_lease:
                    del self.leases[name]
        process.has_ended = True
        if process.is_heard:
            delay = DETECTION_SECONDS if status is None else 0.0
            ending = Ending(name, status)
            self.at(self.now + delay, lambda: process.launcher.hear(ending))
        self._place()


def random_faults(
    generator: random.Random, kinds: Sequence[str], seconds_between: float
) -> Callable[[str, int], Fault | None]:
    """Return faults of random kinds at random moments, for `Cluster`.

    Args:
        generator: Draws them.
        kinds: The kinds, equally likely.
        seconds_between: Mean time from a process's begin to its fault; a process that ends before has none.
            Infinite: there are no faults.
    """

    def fault_of(cell: str, attempt: int) -> Fault | None:
        if math.isinf(seconds_between):
            return None
        return Fault(generator.choice(kinds), generator.expovariate(1 / seconds_between))

    return fault_of
