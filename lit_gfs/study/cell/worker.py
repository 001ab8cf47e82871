"""The process of one cell: runs its ``fit``, and writes a log and a result."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from lit_gfs.configuration.config_files import complete_arguments
from lit_gfs.errors import StorageFault, TrainingDiverged, UserError
from lit_gfs.runs.storage_errors import describe_storage_error, is_storage_error
from lit_gfs.study.cell.attempts import Attempt, begin_attempt, clear_up, seconds_in
from lit_gfs.study.cell.task import Task, imported
from lit_gfs.study.lease import HeldLease, LeaseLost
from lit_gfs.study.results.collect import Result, read_events, read_result, write_result
from lit_gfs.study.results.table import FAILED, FINISHED
from lit_gfs.utils.stop_signals import STOP_SIGNALS

LOG_NAME = "log.txt"
MAX_ERROR_LENGTH = 300


class Fitted(NamedTuple):
    """Data of a fit besides its events; times are in seconds, the start since the epoch."""

    started_at: float
    seconds: float
    parameters: int
    env_id: str | None
    cpu_seconds: float | None = None


Tell = Callable[[int, int | None], None]
"""Receives the number of steps so far and in all."""

Fit = Callable[[list[str], Tell], Fitted]


def fit(command: list[str], tell: Tell) -> Fitted:
    """Run the command line's ``fit``.

    Args:
        command: Its arguments, beginning with ``fit``.
        tell: Receives the steps of the run, about once a second.
    """
    # Imported here because the command line imports this package.
    from lit_gfs.cli import GradientFlowCLI
    from lit_gfs.metrics.module_protocol import trained_parameters
    from lit_gfs.study.cell.told_steps import ToldSteps

    class TimedFit(GradientFlowCLI):
        started_at = ended_at = cpu_seconds = 0.0

        def before_fit(self) -> None:
            self.trainer.callbacks.append(ToldSteps(tell))  # type: ignore[attr-defined]
            self.started_at, self.cpu_seconds = time.time(), -cpu_seconds()

        def after_fit(self) -> None:
            self.ended_at = time.time()
            self.cpu_seconds += cpu_seconds()

    cli = TimedFit(complete_arguments(command))
    trained = [p for optimizer in cli.trainer.optimizers for p in trained_parameters(optimizer)]
    return Fitted(
        started_at=cli.started_at,
        seconds=round(cli.ended_at - cli.started_at, 3),
        parameters=sum(parameter.numel() for parameter in trained),
        env_id=getattr(cli.datamodule, "env_id", None),
        cpu_seconds=round(cli.cpu_seconds, 3),
    )


def cpu_seconds() -> float:
    """Return the processor time of this process, all its threads, and its child processes that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def work(task: Task, tell_fault: Callable[[str], None]) -> int:
    """Run a cell in this process, and write its log and its result.

    A process that receives SIGTERM, or whose lease another one has taken, writes no result: its cell has not
    failed and has to run again. The same holds if its files cannot be written.

    Args:
        task: The task.
        tell_fault: Receives the message of a fault of the storage.

    Returns:
        The exit status: see `lit_gfs.study.cell`.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the study handles Ctrl-C
    # An environment may change the working directory.
    directory = task.directory.absolute()
    try:
        with HeldLease(directory, task.launcher, lambda: os._exit(LeaseLost.status)) as lease:

            def end(*_: object) -> NoReturn:
                lease.release()
                os._exit(128 + signal.SIGTERM)

            signal.signal(signal.SIGTERM, end)
            if read_result(directory) is not None:
                return 0  # this process waited in a queue, while another one ran the cell
            _run(task, directory, lease)
    except LeaseLost:
        return LeaseLost.status
    except (StorageFault, OSError) as error:
        if isinstance(error, OSError):
            if not is_storage_error(error, directory):
                raise
            tell_fault(describe_storage_error(error, directory))
        else:
            tell_fault(error.what)
        return StorageFault.status
    return 0


def _run(task: Task, directory: Path, lease: HeldLease) -> None:
    run_fit: Fit = imported(task.fit)
    attempts, options = begin_attempt(directory, task.command)
    _write_output_to(directory / LOG_NAME)
    result = Result(task.cell.name, task.cell.arguments, task.command, FAILED)
    try:
        fitted = run_fit([*task.command, *options], lease.tell)
        # Times in the events are read to the millisecond.
        attempts[-1] = Attempt(round(fitted.started_at, 3), attempts[-1].before)
        events = read_events(directory, task.score, started_at=0.0)
        result = result._replace(
            status=FINISHED,
            env_id=fitted.env_id,
            steps=events.steps,
            parameters=fitted.parameters,
            wall_seconds=round(attempts[-1].before + fitted.seconds, 3),
            # A killed attempt leaves no record of its processor time.
            cpu_seconds=fitted.cpu_seconds if len(attempts) == 1 else None,
            curves={
                tag: curve._replace(seconds=[seconds_in(attempts, moment) for moment in curve.seconds])
                for tag, curve in events.curves.items()
            },
            gradient_norms=events.gradient_norms,
        )
    except (UserError, TrainingDiverged) as error:
        print("lit_gfs: error:", error, file=sys.stderr)
        result = result._replace(error=shorten(str(error)))
    except StorageFault:
        raise
    except (Exception, SystemExit) as error:
        if is_storage_error(error, directory):
            raise
        traceback.print_exc()
        result = result._replace(error=shorten(f"{type(error).__name__}: {error}"))
    lease.require()
    write_result(directory, result)
    clear_up(directory, task.keep_checkpoints)


def shorten(message: str) -> str:
    """Shorten a message to one line of at most `MAX_ERROR_LENGTH` characters."""
    line = " ".join(message.split())
    return line if len(line) <= MAX_ERROR_LENGTH else f"{line[: MAX_ERROR_LENGTH - 3]}..."


def _write_output_to(path: Path) -> None:
    """Redirect the output of this process and its libraries to a file."""
    with path.open("ab") as file:
        for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(file.fileno(), descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
