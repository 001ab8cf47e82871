"""The protocol between a study and the machines that run its cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from lit_gfs.study.cell.task import Task


class Ending(NamedTuple):
    """The end of a cell's process.

    Attributes:
        cell: The cell's name.
        status: The exit status, negative for a signal; ``None`` if its machine was lost.
        detail: More about it in one line, such as the message of a storage fault.
    """

    cell: str
    status: int | None
    detail: str = ""


class Launcher(Protocol):
    """Runs cells, each in a process of its own.

    A process is ``python -m lit_gfs.study.cell <cell directory>``, or does the same. Its exit status tells
    how it ended: see `lit_gfs.study.cell`. A launcher repeats nothing: the study does.
    """

    name: str
    """The launcher's name on the command line; leases contain it."""

    def start(self, tasks: Sequence[Task]) -> None:
        """Hand tasks to the machines, and return at once. Their ``task.json`` is written."""

    def wait(self, seconds: float) -> list[Ending]:
        """Wait until a task ends, at most so long, also if none runs; return every end once."""

    def stop(self) -> None:
        """End all tasks, and release all machines. No ends are told any more."""
