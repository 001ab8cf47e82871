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
"""Time between two updates of the line in a terminal."""
PLAIN_LINE_SECONDS = 10.0
"""Time between two lines elsewhere."""


def run_description(trainer: Trainer) -> str:
    """Return the agent and the environment of a run, as in ``DQN CartPole-v1``."""
    agent = type(trainer.lightning_module).__name__
    env_id = getattr(getattr(trainer, "datamodule", None), "env_id", None)
    return agent if env_id is None else f"{agent} {env_id}"


def counts_env_steps(trainer: Trainer) -> bool:
    """Return whether the datamodule has ``env_steps`` and ``total_steps``."""
    datamodule = getattr(trainer, "datamodule", None)
    return hasattr(datamodule, "env_steps") and hasattr(datamodule, "total_steps")


def count_steps(trainer: Trainer) -> tuple[int, int | None]:
    """Return the number of steps so far, and in the whole run.

    Returns:
        Environment steps over all ranks if the datamodule counts them, else optimizer steps. The total is
        ``None`` for a run without a limit.
    """
    if counts_env_steps(trainer):
        datamodule: Any = cast(Any, trainer).datamodule
        return datamodule.env_steps, datamodule.total_steps
    total = trainer.estimated_stepping_batches
    return trainer.global_step, int(total) if 0 < total < math.inf else None


class _TerminalDisplay:
    """Updates one line in a terminal; other output appears above the line."""

    seconds_between = REFRESH_SECONDS

    def __init__(self) -> None:
        self._console = Console(force_terminal=True, force_interactive=True)
        self._stderr = sys.stderr
        # Redirect stderr only if it is a terminal, because a file must still receive it. There is no refresh
        # thread: collectors may fork, and a lock held by the thread would stay locked in the child.
        self._live = Live(console=self._console, auto_refresh=False, redirect_stderr=sys.stderr.isatty())
        self._live.start()
        _move_log_handlers(self._stderr, sys.stderr)

    def show(self, line: ProgressLine) -> None:
        # Leave three columns free: an echoed ^C at the end of the row would start a new row.
        self._live.update(line.rich(self._console.width - 3), refresh=True)

    def close(self) -> None:
        _move_log_handlers(sys.stderr, self._stderr)
        self._live.stop()


class _PlainDisplay:
    """Prints plain lines, for log files and CI jobs."""

    seconds_between = PLAIN_LINE_SECONDS

    def show(self, line: ProgressLine) -> None:
        print(line.plain(), flush=True)

    def close(self) -> None:
        """Do nothing; printed lines need no clean-up."""


def _move_log_handlers(source: TextIO, target: TextIO) -> None:
    """Redirect log handlers to a replaced stderr; they keep a reference to the old stream."""
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    for handler in [handler for logger in loggers for handler in getattr(logger, "handlers", ())]:
        if isinstance(handler, logging.StreamHandler) and handler.stream is source:
            handler.setStream(target)


def _supports_live_line(stdout: TextIO) -> bool:
    return stdout.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


class StepProgressBar(ProgressBar):
    """Shows progress in environment steps on one line, with speed, returns and remaining time.

    It reads ``env_steps`` and ``total_steps`` of the datamodule, ``latest_return`` of the LightningModule,
    and the metric with the tag ``score`` of the module, by default ``eval/episode_return``. Without the first
    two it counts optimizer steps; unknown returns appear as ``-``. If stdout is not a terminal, it prints a
    plain line at most every ten seconds, and at the end.

    Args:
        description: Name of the run; ``null`` uses the agent and the environment.

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
            # An evaluation is a single batch without hooks, so the datamodule calls this between its steps.
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
            # Read the metric only here: all ranks have reduced it. Reading it elsewhere could trigger a
            # reduction on this rank alone.
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
        """Show the last line, and restore the terminal."""
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
            self._display = _TerminalDisplay() if _supports_live_line(sys.stdout) else _PlainDisplay()
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
