"""An observer of a study's driver that writes down what it is told."""

from __future__ import annotations

from collections.abc import Mapping

from lit_gfs.study.planning.plan import Cell
from lit_gfs.study.results.collect import Result
from lit_gfs.study.running import Steps


class Record:
    """Keeps what it is told about cells."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.most_at_once = 0
        self.results: dict[str, Result] = {}
        self.interruptions: list[tuple[str, str]] = []
        self.steps: dict[str, Steps] = {}

    def started(self, cell: Cell) -> None:
        self.running.append(cell.name)
        self.most_at_once = max(self.most_at_once, len(self.running))

    def ended(self, cell: Cell, result: Result) -> None:
        self.running.remove(cell.name)
        self.results[cell.levels["recipe"]] = result

    def interrupted(self, cell: Cell, reason: str) -> None:
        self.running.remove(cell.name)
        self.interruptions.append((cell.levels["recipe"], reason))

    def refresh(self, steps: Mapping[str, Steps]) -> None:
        self.steps.update(steps)
