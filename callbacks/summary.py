"""Summary of a run, printed at its end."""

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

from lit_gfs.callbacks.diagnosis import Diagnosis
from lit_gfs.callbacks.progress import StepProgressBar, count_steps, counts_env_steps, run_description
from lit_gfs.errors import OtherProcessFailed
from lit_gfs.metrics.findings import Finding
from lit_gfs.metrics.module_protocol import score_tag
from lit_gfs.utils.formats import format_duration, format_rate, format_return, relative_path

MAX_COLUMNS = 90
STATUS_STYLES = {"finished": "green", "finished,": "yellow", "interrupted": "yellow", "failed": "red"}
"""Colours by the first word; a comma follows it if something was found."""


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
    findings: Sequence[Finding] = (),
    best_checkpoints: Sequence[str] = (),
    last_checkpoints: Sequence[str] = (),
    run_directory: str | None = None,
    logger_directories: Sequence[str] = (),
    tensorboard_root: str | None = None,
) -> list[tuple[str, str]]:
    """Return the rows of a run's summary, without rows for unknown values.

    Args:
        status: Status of the run, such as ``finished``.
        steps: Steps at the end, including those before a resume.
        start_steps: Steps at the start, above 0 in a resumed run.
        seconds: Wall time since the start, in seconds.
        counts_env_steps: Whether steps are environment steps; otherwise they are optimizer steps.
        total_steps: Planned number of steps.
        frame_skip: Simulator frames per environment step.
        last_eval_return: Mean raw return, or another score, of the last evaluation.
        best_eval_return: Mean raw return, or another score, of the best evaluation.
        score: Tag of the score.
        findings: Diagnosis of the run; each finding gets a row, and the status mentions those that last.
        best_checkpoints: Paths of the best checkpoints.
        last_checkpoints: Paths of the latest checkpoints.
        run_directory: Directory of the run.
        logger_directories: Directories of the loggers; those other than the run's directory get a row.
        tensorboard_root: Directory for ``tensorboard --logdir``.

    Returns:
        Names and values. Paths inside the working directory are relative to it.
    """
    wrong = "; ".join(finding.name for finding in findings if finding.lasts)
    rows = [("status", f"{status}, but {wrong}" if wrong else status)]
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
    rows += [("diagnosis", str(finding)) for finding in findings]
    rows += [("best checkpoint", relative_path(path)) for path in best_checkpoints]
    rows += [("last checkpoint", relative_path(path)) for path in last_checkpoints]
    if run_directory is not None:
        rows.append(("run directory", relative_path(run_directory)))
    shown = None if run_directory is None else relative_path(run_directory)
    others = (
        path
        for path in map(relative_path, logger_directories)
        if shown is None or not Path(path).is_relative_to(shown)
    )
    rows += [("logger directory", path) for path in others]
    if tensorboard_root is not None:
        rows.append(("curves", f"tensorboard --logdir {shlex.quote(relative_path(tensorboard_root))}"))
    return rows


def print_summary(title: str, rows: Sequence[tuple[str, str]], console: Console | None = None) -> None:
    """Print rows to stdout: a table in a terminal, plain text elsewhere.

    Args:
        title: Heading.
        rows: Names and values from `summary_rows`.
        console: Terminal for the table, in place of stdout.
    """
    if console is None and not sys.stdout.isatty():
        name_width = max(len(name) for name, _ in rows)
        print(title, *(f"  {name:{name_width}}  {value}" for name, value in rows), sep="\n", flush=True)
        return
    console = console or Console()
    table = Table(title=title, title_style="bold", title_justify="left", box=box.ROUNDED, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    # Fold long paths instead of truncating them.
    table.add_column(overflow="fold")
    for name, value in rows:
        style = STATUS_STYLES.get(value.partition(" ")[0], "") if name == "status" else ""
        table.add_row(name, Text(value, style))
    console.print(table, width=min(MAX_COLUMNS, console.width))


class RunSummary(Callback):
    """Prints a summary of the run at its end, whether it finished, was interrupted or failed.

    Steps are counted as in `StepProgressBar`. The evaluation return is the metric with the tag ``score`` of
    the module, by default ``eval/episode_return``. With a `Diagnosis` beside it, it shows the findings.

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
            # Its own on_exception may run later, but the summary belongs below its last line.
            bar.finish()
        step = f"at step {count_steps(trainer)[0]:,}"
        # After a signal, Lightning and GracefulStop end a process with a SystemExit.
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
        directories = logger_directories(trainer)
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
            findings=[
                finding
                for callback in trainer.callbacks  # type: ignore[attr-defined]
                if isinstance(callback, Diagnosis)
                for finding in callback.findings()
            ],
            best_checkpoints=best_checkpoints,
            last_checkpoints=last_checkpoints,
            run_directory=run_directory(trainer, directories),
            logger_directories=directories,
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
        # Without a monitored metric, the callback's "best" checkpoint is its latest.
        (best if callback.monitor else last).append(callback.best_model_path)
        last.append(callback.last_model_path)
    return max(scores, default=None), _distinct(best), _distinct(last)


def logger_directories(trainer: Trainer) -> list[str]:
    """Return the directories of the Trainer's loggers, each once."""
    return _distinct(filter(None, map(logger_directory, trainer.loggers)))


def logger_directory(logger: Logger) -> str | None:
    """Return the directory of a logger; that of the run, if its events lie in one inside."""
    # `trainer.log_dir` would wait for the other ranks, which do not reach this point.
    directory = getattr(logger, "log_dir", None) or logger.save_dir
    if directory is None:
        return None
    return os.path.dirname(directory) if getattr(logger, "sub_dir", None) else str(directory)


def run_directory(trainer: Trainer, directories: Sequence[str]) -> str | None:
    """Return the logger's directory that contains checkpoints, else that of the last ModelCheckpoint."""
    kept = [
        Path(os.path.abspath(each.dirpath))
        for each in trainer.checkpoint_callbacks
        if isinstance(each, ModelCheckpoint) and each.dirpath is not None
    ]
    for directory in directories:
        if any(path.is_relative_to(os.path.abspath(directory)) for path in kept):
            return directory
    return str(kept[-1]) if kept else next(iter(directories), None)


def _distinct(paths: Iterable[str]) -> list[str]:
    """Remove empty and repeated paths."""
    return list(dict.fromkeys(path for path in paths if path))
