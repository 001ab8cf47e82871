"""Fits of a search whose scores are known: nothing is trained."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from lit_gfs.errors import UserError
from lit_gfs.study.cell.task import Task
from lit_gfs.study.cell.worker import Fitted, Tell
from lit_gfs.study.launchers.launcher import Ending
from lit_gfs.study.results.collect import Result, read_events, write_result
from lit_gfs.study.results.table import FAILED, FINISHED
from support.study_fits import TAG, option, run_directory, write_events

BEST_RATE = 1e-3


def score(rate: float, seed: int) -> float:
    """Return the score of a rate: 1 at the best one, less by its distance in decades; seeds differ."""
    return 1 - abs(math.log10(rate / BEST_RATE)) + 0.01 * (seed % 10)


def fit(arguments: list[str], tell: Tell) -> Fitted:
    """Log the score of ``--rate``; fail below ``--fails_below``.

    Waits for a file ``go`` if the cell's name ends with ``--waits``. Writes that name and the number of this
    process into ``began.txt``.
    """
    rate, seed = float(option(arguments, "rate")), int(option(arguments, "seed_everything"))
    directory, began = run_directory(arguments), time.time()
    with Path("began.txt").open("a") as file:
        file.write(f"{directory.name} {os.getpid()}\n")
    while directory.name.endswith(option(arguments, "waits")) and not Path("go").exists():
        time.sleep(0.02)
    if rate < float(option(arguments, "fails_below")):
        raise UserError(f"a rate of {rate} is too low")
    write_events(directory, {TAG: [(100, score(rate, seed)), (200, score(rate, seed))]}, began)
    return Fitted(began, 0.5, parameters=10, env_id=None, cpu_seconds=0.5)


class InThisProcess:
    """A launcher that runs these fits at once, in the process of the study."""

    name = "in this process"

    def __init__(self, gpus: object = None) -> None:
        self._endings: list[Ending] = []

    def start(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            result = Result(task.cell.name, task.cell.arguments, task.command, FAILED)
            try:
                fit(task.command, lambda done, total: None)
                curves = read_events(task.directory, task.score, started_at=0.0).curves
                result = result._replace(status=FINISHED, curves=curves, wall_seconds=0.5)
            except UserError as error:
                result = result._replace(error=str(error))
            write_result(task.directory, result)
            self._endings.append(Ending(task.cell.name, 0))

    def wait(self, seconds: float) -> list[Ending]:
        endings, self._endings = self._endings, []
        return endings

    def stop(self) -> None:
        pass
