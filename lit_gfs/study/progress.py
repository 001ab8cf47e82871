"""Progress of a study over its cells: lines rewritten in place in a terminal, new lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lit_gfs.metrics.scores import final_score
from lit_gfs.study.planning.plan import Cell, Study
from lit_gfs.study.results.collect import Result
from lit_gfs.study.results.table import FAILED, FINISHED
from lit_gfs.study.running import Running, Steps
from lit_gfs.utils.formats import format_duration, format_return

BAR_WIDTH = 30
SHOWN_CELLS = 8
PLAIN_LINE_SECONDS = 60.0
"""Time between two lines about running cells, where they cannot be rewritten."""
PLAIN_NEWS_SECONDS = 10.0
"""The same if there is news: another cell has started, or the time left is known for the first time."""


class StudyProgress:
    """Shows the cells of a study as they run; use it as a context manager.

    Args:
        study: The plan.
        cells: The cells to run now.
        results: Results of earlier runs, by cell. The object updates them.
        jobs: Number of parallel cells; ``None`` if a cluster decides that.
        queues: Whether started cells wait in a queue until they have steps to tell.
    """

    def __init__(
        self,
        study: Study,
        cells: Sequence[Cell],
        results: dict[str, Result],
        jobs: int | None,
        queues: bool = False,
    ) -> None:
        self.study = study
        self.results = results
        self.jobs = jobs
        self._queues = queues
        self._cells = list(cells)
        self._left = {cell.name: cell for cell in cells}
        # Cells that differ only in the seed take about the same time.
        self._alike = {cell.name: tuple({**cell.levels, "seed": ""}.values()) for cell in study.cells()}
        self._running: dict[str, Running] = {}
        self._failed = 0
        self._live: Live | None = None
        self._printed_at = -math.inf
        self._has_news = False
        self._knew_time_left = False

    @property
    def left(self) -> int:
        """Number of cells that have not ended."""
        return len(self._left)

    def __enter__(self) -> Self:
        print("\n".join(self._plan()), flush=True)
        console = Console()
        if sys.stdout.isatty() and not console.is_dumb_terminal:
            self._live = Live(console=console, auto_refresh=False, redirect_stderr=sys.stderr.isatty())
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._lines(), refresh=True)
            self._live.stop()

    def started(self, cell: Cell) -> None:
        """Note the start of a cell, and drop its earlier result."""
        self.results.pop(cell.name, None)
        self._running[cell.name] = Running(time.monotonic(), self._queues)
        self._has_news = True

    def interrupted(self, cell: Cell, reason: str) -> None:
        """Print why a cell has to start again."""
        del self._running[cell.name]
        line = f"{self._count()} {cell.name} | {reason}; starts again"
        if self._live is None:
            print(line, flush=True)
        else:
            self._live.console.print(Text(line, "yellow"))

    def ended(self, cell: Cell, result: Result) -> None:
        """Print the result of a cell, and keep it in ``results``."""
        self.results[cell.name] = result
        running = self._running.pop(cell.name)
        # A cell that ends before it has told of any steps has come out of the queue unseen.
        seconds = (result.wall_seconds or 0.0) if running.waits else running.seconds(time.monotonic())
        del self._left[cell.name]
        self._failed += result.status == FAILED
        parts = [f"{self._count()} {cell.name}", self._outcome(result), format_duration(seconds)]
        line = " | ".join([*parts, self._time_left()])
        if self._live is None:
            print(line, flush=True)
        elif result.status == FAILED:
            self._live.console.print(Text(line, "red"))

    def refresh(self, steps: Mapping[str, Steps]) -> None:
        """Show how far the running cells are.

        Args:
            steps: Their steps, by cell.
        """
        now = time.monotonic()
        for name, done in steps.items():
            self._running[name].advance(done, now)
        if self._live is not None:
            self._live.update(self._lines(), refresh=True)
        elif self._running:
            self._print_if_due(now)

    def seconds_left(self) -> float | None:
        """Estimate the seconds that the remaining cells need; ``None`` before there is anything to go by.

        A running cell goes by its own speed, and the others by cells of the same kind, which differ only in
        the seed: by those that have finished, or else by those that run.
        """
        now = time.monotonic()
        finished: dict[tuple[str, ...], list[float]] = {}
        for name, result in self.results.items():
            if result.wall_seconds is not None:
                finished.setdefault(self._alike[name], []).append(result.wall_seconds)
        by_speed: dict[tuple[str, ...], list[float]] = {}
        for name, running in self._running.items():
            if (seconds := running.seconds_in_all(now)) is not None:
                by_speed.setdefault(self._alike[name], []).append(seconds)
        by_kind = {**by_speed, **finished}
        if not by_kind:
            return None
        overall = fmean(value for values in by_kind.values() for value in values)
        left = {name: fmean(by_kind.get(self._alike[name], [overall])) for name in self._left}
        for name, running in self._running.items():
            own = running.seconds_left(now)
            left[name] = max(0.0, left[name] - running.seconds(now)) if own is None else own
        # A free job does not make the last cells faster.
        jobs = self.jobs or max(1, sum(not running.waits for running in self._running.values()))
        return max(sum(left.values()) / jobs, max(left.values(), default=0.0))

    def _plan(self) -> list[str]:
        """Say how many cells there are, and which have ended before."""
        before = {name: result for name, result in self.results.items() if name not in self._left}
        failed = sum(result.status == FAILED for result in before.values())
        others = len(self._alike) - len(before) - len(self._left)
        counts = [f"{len(before) - failed} finished before", f"{failed} failed before", f"{others} left out"]
        known = [count for count in counts if not count.startswith("0 ")]
        at_a_time = f"{self.jobs} at a time" if self.jobs else "as many at a time as there is room for"
        to_run = f"{len(self._left)} to run, {at_a_time}"
        lines = [f"{self.study.name}: {len(self._alike)} cells: {', '.join([*known, to_run])}"]
        if len(before) <= SHOWN_CELLS:
            lines += [f"before: {name} | {self._outcome(result)}" for name, result in before.items()]
        return lines

    def _outcome(self, result: Result) -> str:
        if result.status != FINISHED:
            return f"failed: {result.error}"
        score = self.study.score
        curve = result.curves[score.tag]
        return format_return(final_score(curve.steps, curve.values, score.final_share))

    def _count(self) -> str:
        return f"{len(self._cells) - len(self._left)}/{len(self._cells)}"

    def _time_left(self) -> str:
        return f"{format_duration(self.seconds_left())} left" if self._left else "done"

    def _print_if_due(self, now: float) -> None:
        known = self.seconds_left() is not None
        self._has_news |= known and not self._knew_time_left
        self._knew_time_left = known
        wait = PLAIN_NEWS_SECONDS if self._has_news else PLAIN_LINE_SECONDS
        if now - self._printed_at >= wait:
            self._printed_at, self._has_news = now, False
            shown = "; ".join(self._described(now))
            print(f"{self._count()} running {shown} | {self._time_left()}", flush=True)

    def _described(self, now: float) -> list[str]:
        shown = [each.described(name, now) for name, each in self._running.items() if not each.waits]
        more = [f"and {len(shown) - SHOWN_CELLS} more"] if len(shown) > SHOWN_CELLS else []
        waiting = sum(running.waits for running in self._running.values())
        return shown[:SHOWN_CELLS] + more + ([f"{waiting} waiting"] if waiting else [])

    def _lines(self) -> Table:
        ended = len(self._cells) - len(self._left)
        done = ended + sum(running.share() for running in self._running.values())
        line = Table.grid(padding=(0, 1, 0, 0))
        failed = Text(f"{self._failed} failed", "red") if self._failed else Text("")
        bar = ProgressBar(max(1, len(self._cells)), done, width=BAR_WIDTH)
        line.add_row(
            Text(self.study.name, "bold"), bar, self._count(), failed, Text(self._time_left(), "dim")
        )
        table = Table.grid()
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_row(line)
        for shown in self._described(time.monotonic()):
            table.add_row(Text(f"  {shown}", "dim"))
        return table
