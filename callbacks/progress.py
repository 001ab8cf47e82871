"""A progress bar that counts environment steps."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from typing import Any, TextIO, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.console import Console
from rich.live import Live
from typing_extensions import override

from lit_gfs.metrics.module_protocol import score_tag
from lit_gfs.utils.progress_line import Pace, ProgressLine

REFRESH_SECONDS = 0.2
PLAIN_LINE_SECONDS = 10.0


def run_description(trainer: Trainer) -> str:
    """Name a run by agent and environment, as in ``DQN CartPole-v1``."""
    agent = type(trainer.lightning_module).__name__
    env_id = getattr(getattr(trainer, "datamodule", None), "env_id", None)
    return agent if env_id is None else f"{agent} {env_id}"


def counts_env_steps(trainer: Trainer) -> bool:
    """Say whether the datamodule counts environment steps, that is, has ``env_steps`` and ``total_steps``."""
    datamodule = getattr(trainer, "datamodule", None)
    return hasattr(datamodule, "env_steps") and hasattr(datamodule, "total_steps")


def count_steps(trainer: Trainer) -> tuple[int, int | None]:
    """Count the steps taken, and those of the whole run.

    Returns:
        Environment steps over all ranks if the datamodule counts them, optimizer steps otherwise. The total
        is ``None`` for a run without an end.
    """
    if counts_env_steps(trainer):
        datamodule: Any = cast(Any, trainer).datamodule
        return datamodule.env_steps, datamodule.total_steps
    total = trainer.estimated_stepping_batches
    return trainer.global_step, int(total) if 0 < total < math.inf else None


class _TerminalDisplay:
    """Draws a line over itself; whatever else is printed meanwhile goes above it."""

    seconds_between = REFRESH_SECONDS

    def __init__(self) -> None:
        self._console = Console(force_terminal=True, force_interactive=True)
        self._stderr = sys.stderr
        # stderr that goes to a file must not be drawn into the terminal. No refresh thread: collectors may
        # fork, and a lock that the thread holds would stay locked in the child.
        self._live = Live(console=self._console, auto_refresh=False, redirect_stderr=sys.stderr.isatty())
        self._live.start()
        _move_log_handlers(self._stderr, sys.stderr)

    def show(self, line: ProgressLine) -> None:
        # Three columns stay free: a terminal that echoes ^C in the last one would move to the next row.
        self._live.update(line.rich(self._console.width - 3), refresh=True)

    def close(self) -> None:
        _move_log_handlers(sys.stderr, self._stderr)
        self._live.stop()


class _PlainDisplay:
    """Prints lines that a log file or a CI job can hold."""

    seconds_between = PLAIN_LINE_SECONDS

    def show(self, line: ProgressLine) -> None:
        print(line.plain(), flush=True)

    def close(self) -> None:
        """Leave nothing behind."""


def _move_log_handlers(source: TextIO, target: TextIO) -> None:
    """Let log handlers follow a replaced stderr: they hold on to the one they were made with."""
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    for handler in [handler for logger in loggers for handler in getattr(logger, "handlers", ())]:
        if isinstance(handler, logging.StreamHandler) and handler.stream is source:
            handler.setStream(target)


def _draws_lines(stdout: TextIO) -> bool:
    return stdout.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


class StepProgressBar(ProgressBar):
    """One line of progress in environment steps, with speed, returns and the time that is left.

    Reads ``env_steps`` and ``total_steps`` of the datamodule, ``latest_return`` of the LightningModule and
    the metric that its ``score`` names, else ``eval/episode_return``. Without the first two it counts
    optimizer steps; returns that nobody reports show as ``-``. When stdout is no terminal, a plain line is
    printed at most every ten seconds, and at the end.

    Args:
        description: What to call the run; ``null`` makes it of agent and environment.

    Example::

        trainer = Trainer(callbacks=[StepProgressBar()])
    """

    def __init__(self, description: str | None = None) -> None:
        super().__init__()
        self.description = description
        self._enabled = True
        self._display: _TerminalDisplay | _PlainDisplay | None = None
        self._pace: Pace | None = None
        self._started_at = 0.0
        self._next_refresh = math.inf
        self._eval_return: float | None = None
        self._evaluating = False

    @override
    def disable(self) -> None:
        self._close()
        self._enabled = False
        self._next_refresh = math.inf

    @override
    def enable(self) -> None:
        self._enabled = True
        if self._pace is not None and self.trainer.is_global_zero:
            self._next_refresh = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled and trainer.is_global_zero:
            self._started_at = time.monotonic()
            self._pace = Pace(count_steps(trainer)[0], self._started_at)
            self._eval_return, self._evaluating = None, False
            self._refresh()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._refresh_if_due()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pace is not None:
            self._pace.record(count_steps(trainer)[0], time.monotonic())
            self._pace.pause(time.monotonic())
            self._evaluating = True
            # No hook runs during an evaluation that is one batch: a datamodule that has steps in it calls.
            datamodule: Any = getattr(trainer, "datamodule", None)
            if hasattr(datamodule, "while_evaluating"):
                datamodule.while_evaluating = self._refresh_if_due
            if isinstance(self._display, _TerminalDisplay):
                self._refresh()
            else:
                self._refresh_if_due()
        elif trainer.state.fn == TrainerFn.VALIDATING:
            self._announce_evaluation()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pace is not None:
            self._pace.resume(count_steps(trainer)[0], time.monotonic())
            self._evaluating = False
            # Read here only: every rank has reduced it by now, and elsewhere reading it could start to.
            if (eval_return := trainer.callback_metrics.get(score_tag(pl_module))) is not None:
                self._eval_return = float(eval_return)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._announce_evaluation()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.finish()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.finish()

    def finish(self) -> None:
        """Leave a last line, if there is one on display, and the terminal as it was found."""
        self._close()
        self._pace = None
        self._next_refresh = math.inf

    def _announce_evaluation(self) -> None:
        if self._enabled and self.trainer.is_global_zero:
            print(f"{self._description()} | evaluating", flush=True)

    def _description(self) -> str:
        return run_description(self.trainer) if self.description is None else self.description

    def _refresh_if_due(self) -> None:
        if time.monotonic() >= self._next_refresh:
            self._refresh()

    def _refresh(self) -> None:
        now = time.monotonic()
        line = self._line(now)
        if self._display is None:
            self._display = _TerminalDisplay() if _draws_lines(sys.stdout) else _PlainDisplay()
        self._display.show(line)
        self._next_refresh = now + self._display.seconds_between

    def _line(self, now: float) -> ProgressLine:
        assert self._pace is not None
        steps, total = count_steps(self.trainer)
        self._pace.record(steps, now)
        return ProgressLine(
            description=self._description(),
            steps=steps,
            total=total,
            rate=self._pace.rate,
            train_return=getattr(self.trainer.lightning_module, "latest_return", None),
            eval_return=self._eval_return,
            elapsed=now - self._started_at,
            left=None if total is None else self._pace.seconds_left(total - steps),
            evaluating=self._evaluating,
        )

    def _close(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            try:
                display.show(self._line(time.monotonic()))
            finally:
                display.close()
