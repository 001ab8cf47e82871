"""Progress of a study over its cells: a bar in a terminal, one line per cell elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lit_gfs.metrics.scores import final_score
from lit_gfs.study.collect import Result
from lit_gfs.study.plan import Cell, Study
from lit_gfs.study.table import FAILED, FINISHED
from lit_gfs.utils.formats import format_duration, format_return

BAR_WIDTH = 30
SHOWN_CELLS = 8


class StudyProgress:
    """Shows the cells of a study as they run; use it as a context manager.

    Args:
        study: The plan.
        cells: The cells to run now.
        results: Results of earlier runs, by cell. The object updates them.
        jobs: Number of parallel cells.
    """

    def __init__(self, study: Study, cells: Sequence[Cell], results: dict[str, Result], jobs: int) -> None:
        self.study = study
        self.results = results
        self.jobs = jobs
        self._cells = list(cells)
        self._left = {cell.name: cell for cell in cells}
        # Cells that differ only in the seed take about the same time.
        self._alike = {cell.name: tuple({**cell.levels, "seed": ""}.values()) for cell in study.cells()}
        self._started: dict[str, float] = {}
        self._failed = 0
        self._live: Live | None = None

    @property
    def left(self) -> int:
        """Number of cells that have not ended."""
        return len(self._left)

    def __enter__(self) -> Self:
        planned = f"{len(self._cells)} cells to run, {self.jobs} at a time"
        print(f"{self.study.name}: {planned}; {len(self.results)} ended before", flush=True)
        console = Console()
        if sys.stdout.isatty() and not console.is_dumb_terminal:
            self._live = Live(console=console, auto_refresh=False, redirect_stderr=sys.stderr.isatty())
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._bar(), refresh=True)
            self._live.stop()

    def started(self, cell: Cell) -> None:
        """Note the start of a cell, and drop its earlier result."""
        self.results.pop(cell.name, None)
        self._started[cell.name] = time.monotonic()

    def ended(self, cell: Cell, result: Result) -> None:
        """Print the result of a cell, and keep it in ``results``."""
        self.results[cell.name] = result
        seconds = time.monotonic() - self._started.pop(cell.name)
        del self._left[cell.name]
        self._failed += result.status == FAILED
        if result.status == FINISHED:
            score = self.study.score
            curve = result.curves[score.tag]
            outcome = format_return(final_score(curve.steps, curve.values, score.final_share))
        else:
            outcome = f"failed: {result.error}"
        line = f"{self._count()} {cell.name} | {outcome} | {format_duration(seconds)} | {self._time_left()}"
        if self._live is None:
            print(line, flush=True)
        elif result.status == FAILED:
            self._live.console.print(Text(line, "red"))

    def refresh(self) -> None:
        """Redraw the bar."""
        if self._live is not None:
            self._live.update(self._bar(), refresh=True)

    def seconds_left(self) -> float | None:
        """Estimate the seconds that the remaining cells need; ``None`` before one has finished."""
        seconds: dict[tuple[str, ...], list[float]] = {}
        for name, result in self.results.items():
            if result.wall_seconds is not None:
                seconds.setdefault(self._alike[name], []).append(result.wall_seconds)
        if not seconds:
            return None
        overall = fmean(value for values in seconds.values() for value in values)
        expected = {name: fmean(seconds.get(self._alike[name], [overall])) for name in self._left}
        now = time.monotonic()
        left = {
            name: max(0.0, duration - (now - self._started.get(name, now)))
            for name, duration in expected.items()
        }
        # A free job does not make the last cells faster.
        return max(sum(left.values()) / self.jobs, max(left.values(), default=0.0))

    def _count(self) -> str:
        return f"{len(self._cells) - len(self._left)}/{len(self._cells)}"

    def _time_left(self) -> str:
        return f"{format_duration(self.seconds_left())} left" if self._left else "done"

    def _bar(self) -> Table:
        done = len(self._cells) - len(self._left)
        line = Table.grid(padding=(0, 1, 0, 0))
        failed = Text(f"{self._failed} failed", "red") if self._failed else Text("")
        bar = ProgressBar(max(1, len(self._cells)), done, width=BAR_WIDTH)
        line.add_row(
            Text(self.study.name, "bold"), bar, self._count(), failed, Text(self._time_left(), "dim")
        )
        table = Table.grid()
        table.add_row(line)
        now = time.monotonic()
        running = list(self._started.items())
        for name, started in running[:SHOWN_CELLS]:
            table.add_row(Text(f"  {name} {format_duration(now - started)}", "dim"))
        if len(running) > SHOWN_CELLS:
            table.add_row(Text(f"  and {len(running) - SHOWN_CELLS} more", "dim"))
        return table
