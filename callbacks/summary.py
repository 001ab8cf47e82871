"""What a run came to, printed when it ends."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from lit_gfs.callbacks.progress import StepProgressBar, count_steps, counts_env_steps, run_description
from lit_gfs.errors import OtherProcessFailed
from lit_gfs.metrics.module_protocol import score_tag
from lit_gfs.utils.formats import format_duration, format_rate, format_return, relative_path

MAX_COLUMNS = 90
STATUS_STYLES = {"finished": "green", "interrupted": "yellow", "failed": "red"}


def summary_rows(
    *,
    status: str,
    steps: int,
    start_steps: int = 0,
    seconds: float,
    counts_env_steps: bool = True,
    total_steps: int | None = None,
    frame_skip: int = 1,
    last_eval_return: float | None = None,
    best_eval_return: float | None = None,
    score: str = "eval/episode_return",
    best_checkpoints: Sequence[str] = (),
    last_checkpoints: Sequence[str] = (),
    run_directory: str | None = None,
    logger_directories: Sequence[str] = (),
    tensorboard_root: str | None = None,
) -> list[tuple[str, str]]:
    """Say what a run came to, leaving out what there is nothing to say about.

    Args:
        status: How the run ended.
        steps: Steps at the end, those before a resume included.
        start_steps: Steps at the start, above 0 in a resumed run.
        seconds: Wall time since the start.
        counts_env_steps: Whether steps are environment steps; optimizer steps otherwise.
        total_steps: Steps that the run was to take.
        frame_skip: Simulator frames per environment step.
        last_eval_return: Mean raw return, or another score, of the last evaluation.
        best_eval_return: That of the best evaluation.
        score: The score's tag.
        best_checkpoints: Paths of the best checkpoints.
        last_checkpoints: Paths of the latest checkpoints.
        run_directory: Where the run wrote.
        logger_directories: Where loggers wrote; those other than the run's directory are told.
        tensorboard_root: Directory to point TensorBoard at.

    Returns:
        Names and values; paths are relative to the working directory where they lie inside it.
    """
    rows = [("status", status)]
    unit = "environment" if counts_env_steps else "optimizer"
    total = "" if total_steps is None or steps >= total_steps else f" of {total_steps:,}"
    frames = f" ({steps * frame_skip:,} frames)" if counts_env_steps and frame_skip > 1 else ""
    rows.append((f"{unit} steps", f"{steps:,}{total}{frames}"))
    rate = format_rate((steps - start_steps) / seconds if seconds > 0 else None)
    since = f", from step {start_steps:,} on" if start_steps else ""
    rows.append(("wall time", f"{format_duration(seconds)} ({rate}{since})"))
    returns = [("last", last_eval_return), ("best", best_eval_return)]
    if known := [f"{name} {format_return(value)}" for name, value in returns if value is not None]:
        rows.append((f"evaluation {score.removeprefix('eval/').removeprefix('episode_')}", ", ".join(known)))
    rows += [("best checkpoint", relative_path(path)) for path in best_checkpoints]
    rows += [("last checkpoint", relative_path(path)) for path in last_checkpoints]
    if run_directory is not None:
        rows.append(("run directory", relative_path(run_directory)))
    told = None if run_directory is None else relative_path(run_directory)
    elsewhere = (path for path in map(relative_path, logger_directories) if path != told)
    rows += [("logger directory", path) for path in elsewhere]
    if tensorboard_root is not None:
        rows.append(("curves", f"tensorboard --logdir {shlex.quote(relative_path(tensorboard_root))}"))
    return rows


def print_summary(title: str, rows: Sequence[tuple[str, str]], console: Console | None = None) -> None:
    """Print rows to stdout: a table in a terminal, plain text elsewhere.

    Args:
        title: Heading.
        rows: Names and values, as `summary_rows` makes them.
        console: Terminal to print a table to whatever stdout is.
    """
    if console is None and not sys.stdout.isatty():
        name_width = max(len(name) for name, _ in rows)
        print(title, *(f"  {name:{name_width}}  {value}" for name, value in rows), sep="\n", flush=True)
        return
    console = console or Console()
    table = Table(title=title, title_style="bold", title_justify="left", box=box.ROUNDED, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    # Folded, not cut: a path that is cut is of no use.
    table.add_column(overflow="fold")
    for name, value in rows:
        style = STATUS_STYLES.get(value.partition(" ")[0], "") if name == "status" else ""
        table.add_row(name, Text(value, style))
    console.print(table, width=min(MAX_COLUMNS, console.width))


class RunSummary(Callback):
    """Prints what a run came to when it ends: finished, interrupted or failed.

    Steps are counted as in `StepProgressBar`; the evaluation return is the metric that the
    module's ``score`` names, else ``eval/episode_return``.

    Example::

        trainer = Trainer(callbacks=[RunSummary()])
    """

    def __init__(self) -> None:
        self._started_at: float | None = None
        self._start_steps = 0
        self._last_eval_return: float | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started_at = time.monotonic()
        self._start_steps = count_steps(trainer)[0]
        self._last_eval_return = None

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (eval_return := trainer.callback_metrics.get(score_tag(pl_module))) is not None:
            self._last_eval_return = float(eval_return)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, "finished")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._started_at is None:
            return
        bar = trainer.progress_bar_callback
        if isinstance(bar, StepProgressBar):
            # Its own turn may come later; the summary belongs below its last line.
            bar.finish()
        step = f"at step {count_steps(trainer)[0]:,}"
        # Lightning's way to end a process on a signal, and that of GracefulStop, are a SystemExit.
        if isinstance(exception, KeyboardInterrupt | SystemExit):
            self._report(trainer, f"interrupted {step}")
        elif isinstance(exception, OtherProcessFailed):
            self._report(trainer, f"failed {step} in another process")
        else:
            self._report(trainer, f"failed {step} with {type(exception).__name__}")

    def _report(self, trainer: Trainer, status: str) -> None:
        if self._started_at is None or not trainer.is_global_zero:
            return
        seconds, self._started_at = time.monotonic() - self._started_at, None
        steps, total_steps = count_steps(trainer)
        datamodule = getattr(trainer, "datamodule", None)
        score = score_tag(trainer.lightning_module)
        best_eval_return, best_checkpoints, last_checkpoints = _checkpoints(trainer, score)
        logger_directories = _distinct(filter(None, map(_directory_of, trainer.loggers)))
        rows = summary_rows(
            status=status,
            steps=steps,
            start_steps=self._start_steps,
            seconds=seconds,
            counts_env_steps=counts_env_steps(trainer),
            total_steps=total_steps,
            frame_skip=getattr(datamodule, "frame_skip", 1),
            last_eval_return=self._last_eval_return,
            best_eval_return=best_eval_return,
            score=score,
            best_checkpoints=best_checkpoints,
            last_checkpoints=last_checkpoints,
            run_directory=_run_directory(trainer, logger_directories),
            logger_directories=logger_directories,
            tensorboard_root=next(
                (logger.save_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None
            ),
        )
        print_summary(run_description(trainer), rows)


def _checkpoints(trainer: Trainer, score: str) -> tuple[float | None, list[str], list[str]]:
    """Return the best score, the paths of the best and those of the latest checkpoints."""
    scores: list[float] = []
    best: list[str] = []
    last: list[str] = []
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.monitor == score and callback.best_model_score is not None:
            scores.append(float(callback.best_model_score))
        # Without a metric to monitor, its "best" checkpoint is the latest that was written.
        (best if callback.monitor else last).append(callback.best_model_path)
        last.append(callback.last_model_path)
    return max(scores, default=None), _distinct(best), _distinct(last)


def _directory_of(logger: Logger) -> str | None:
    # Not `trainer.log_dir`: it waits for the other ranks, which are not here.
    directory = getattr(logger, "log_dir", None) or logger.save_dir
    return None if directory is None else str(directory)


def _run_directory(trainer: Trainer, logger_directories: Sequence[str]) -> str | None:
    """Return where checkpoints are: a logger's directory if they are in it, else the last callback's own."""
    kept = [
        Path(os.path.abspath(each.dirpath))
        for each in trainer.checkpoint_callbacks
        if isinstance(each, ModelCheckpoint) and each.dirpath is not None
    ]
    for directory in logger_directories:
        if any(path.is_relative_to(os.path.abspath(directory)) for path in kept):
            return directory
    return str(kept[-1]) if kept else next(iter(logger_directories), None)


def _distinct(paths: Iterable[str]) -> list[str]:
    """Drop the empty paths, and those that were there before."""
    return list(dict.fromkeys(path for path in paths if path))
