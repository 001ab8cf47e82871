"""One line of progress, which fits a terminal of any width."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import Any

from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from lit_gfs.utils.formats import format_duration, format_rate, format_return

RATE_WINDOW_SECONDS = 10.0
BAR_WIDTHS = (4, 40)


class Pace:
    """Steps per second over the last seconds of training, and the remaining time.

    An evaluation stops the clock of the rate; afterwards its cost per step is added to the remaining time. If
    the step count jumps once per rollout, the rate covers whole jumps.

    Args:
        steps: Step count at the start, above 0 in a resumed run.
        now: Seconds of a monotonic clock.
    """

    def __init__(self, steps: int, now: float) -> None:
        self._jumps = deque([(now, steps)])
        self._paused_at: float | None = None
        self._paused_seconds = 0.0
        self._evaluated_at = 0
        self._evaluation_seconds_per_step = 0.0

    def record(self, steps: int, now: float) -> None:
        """Note the step count, if it has changed."""
        clock = now - self._paused_seconds
        if self._paused_at is not None or steps == self._jumps[-1][1]:
            return
        self._jumps.append((clock, steps))
        while len(self._jumps) > 2 and self._jumps[1][0] <= clock - RATE_WINDOW_SECONDS:
            self._jumps.popleft()

    def pause(self, now: float) -> None:
        """Stop the clock: an evaluation begins."""
        self._paused_at = now

    def resume(self, steps: int, now: float) -> None:
        """Start the clock again, and note the evaluation's seconds per step since the one before it."""
        if self._paused_at is None:
            return
        seconds, self._paused_at = now - self._paused_at, None
        self._paused_seconds += seconds
        if steps > self._evaluated_at:
            self._evaluation_seconds_per_step = seconds / (steps - self._evaluated_at)
            self._evaluated_at = steps

    @property
    def rate(self) -> float | None:
        """Steps per second of training; ``None`` before the count changes."""
        (first_clock, first), (last_clock, last) = self._jumps[0], self._jumps[-1]
        return (last - first) / (last_clock - first_clock) if last_clock > first_clock else None

    def seconds_left(self, steps: int) -> float | None:
        """Seconds that ``steps`` more steps will take, evaluations included; ``None`` without a rate."""
        rate = self.rate
        return max(0, steps) * (1 / rate + self._evaluation_seconds_per_step) if rate else None


@dataclass(frozen=True)
class ProgressLine:
    """Content of one line; times are in seconds, returns are raw."""

    description: str
    steps: int
    total: int | None
    rate: float | None
    train_return: float | None
    eval_return: float | None
    elapsed: float
    left: float | None
    evaluating: bool = False

    def plain(self) -> str:
        """Return the line for a log file, without control characters."""
        total = "" if self.total is None else f"/{self.total:,} ({min(1.0, self.steps / self.total):.1%})"
        parts = [
            self.description,
            f"{self.steps:,}{total}",
            "evaluating" if self.evaluating else format_rate(self.rate),
            f"train {format_return(self.train_return)}",
            f"eval {format_return(self.eval_return)}",
            f"elapsed {format_duration(self.elapsed)}",
        ]
        if self.total is not None:
            parts.append(f"eta {format_duration(self.left)}")
        return " | ".join(parts)

    def rich(self, width: int) -> Table:
        """Return the line for a terminal, a table of one row that fits ``width`` columns.

        It shortens or leaves out the least important cells first.
        """
        # Values that change their length are padded, so that the line does not wobble.
        state = ("evaluating", "yellow") if self.evaluating else (f"{format_rate(self.rate):10}", "cyan")
        cells = {
            "description": Text(self.description, "bold"),
            "count": Text(f"{self.steps:,}" + ("" if self.total is None else f"/{self.total:,}")),
            "state": Text(*state),
            "train": Text.assemble(("train ", "dim"), f"{format_return(self.train_return):5}"),
            "eval": Text.assemble(("eval ", "dim"), (f"{format_return(self.eval_return):5}", "bold green")),
            "elapsed": Text(format_duration(self.elapsed), "dim"),
        }
        description, count = re.sub(r"\S+/", "", self.description), cells["count"]
        if self.total is not None:
            cells["left"] = Text.assemble(("eta ", "dim"), format_duration(self.left))
            count = Text(f"{self.steps:,}/{_short(self.total)}")
        shortest_bar = 0 if self.total is None else BAR_WIDTHS[0]

        def room_for_bar() -> int:
            return width - sum(cell.cell_len + 1 for cell in cells.values())

        sacrifices = [("elapsed", None), ("description", Text(description, "bold")), ("count", count)]
        last = ["train", "left", "description", "eval"]
        last.insert(3 if self.evaluating else 0, "state")
        for name, shorter in sacrifices + [(name, None) for name in last]:
            if room_for_bar() >= shortest_bar:
                break
            if shorter is None:
                cells.pop(name, None)
            else:
                cells[name] = shorter
        row: list[Any] = list(cells.values())
        if self.total is not None and room_for_bar() >= shortest_bar:
            bar = Bar(self.total, min(self.steps, self.total), width=min(BAR_WIDTHS[1], room_for_bar()))
            row.insert(1 if "description" in cells else 0, bar)
        line = Table.grid(padding=(0, 1, 0, 0))
        for _ in row:
            line.add_column(no_wrap=True)
        line.add_row(*row)
        return line


def _short(count: int) -> str:
    """Write ``1M`` for 1,000,000 and ``1.5k`` for 1,500."""
    for size, suffix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.4g}{suffix}"
    return str(count)
