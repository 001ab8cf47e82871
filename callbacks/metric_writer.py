"""Writes the metrics that a module records."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from lit_gfs.metrics.module_protocol import is_log_step, write_scalars, x_axis
from lit_gfs.metrics.recorded_means import RecordedMeans, merged_totals
from lit_gfs.runs.event_files import cut_event_files, event_file_sizes
from lit_gfs.utils.ranks import gather


class RecordingModule(Protocol):
    """A module whose metrics are written."""

    recorded: RecordedMeans
    """Means since the last time that they were written."""

    def current_values(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return more scalars to write with these means: schedules, episodes that ended."""


class MetricWriter(Callback):
    """Writes a module's recorded means and current values, and how fast the run is.

    It writes on every step that is a multiple of ``Trainer(log_every_n_steps)``, and once more when training
    ends. The x axis counts environment steps where the module does, else optimizer steps.
    ``time/steps_per_second`` leaves evaluations out. With several processes, the means are over all of them.

    A resumed run goes on in the event files of the run before: they are cut back to their length when the
    checkpoint was written, so that no point is missing and none is there twice.

    The agents bring one along. A module of your own needs the two names of `RecordingModule`.
    """

    def __init__(self) -> None:
        self._clock: tuple[float, int] | None = None
        """Seconds of a monotonic clock, and steps, at the last write."""
        self._written_at = 0
        """``global_step`` at the last write."""
        self._evaluation_began: float | None = None
        self._saved_event_files: list[dict[str, int]] = []
        """Sizes of event files by name, for each TensorBoard logger: when the checkpoint was written."""
        self._present_event_files: list[dict[str, int]] = []
        """The same when fitting starts."""

    # -- when to write -----------------------------------------------------------------------------------

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before loggers open files of their own.
        self._present_event_files = _event_file_sizes(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock = (time.monotonic(), x_axis(trainer, pl_module))
        # A module that was trained before has counted other steps than this Trainer.
        self._written_at = min(self._written_at, trainer.global_step)
        files = zip(
            _event_directories(trainer), self._saved_event_files, self._present_event_files, strict=False
        )
        for directory, sizes, present in files:
            cut_event_files(directory, sizes, present)
        self._saved_event_files = []

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._write_if_due(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_began = time.monotonic()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An evaluation comes right before this, and so does the checkpoint that is written after it.
        if self._clock is not None and self._evaluation_began is not None:
            self._clock = (self._clock[0] + time.monotonic() - self._evaluation_began, self._clock[1])
        self._evaluation_began = None

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(gather(bool(_recording(pl_module).recorded))):
            self._write(trainer, pl_module)

    def _write_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A batch is not always a step: gradients may be accumulated, the rest of a rollout skipped.
        if is_log_step(trainer, self._written_at):
            self._written_at = trainer.global_step
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, steps = _recording(pl_module), x_axis(trainer, pl_module)
        module.recorded.load_state_dict(_recorded_by_all_ranks(trainer, module))
        means = module.recorded.take()
        scalars = {**means, **module.current_values(means)}
        now = time.monotonic()
        if self._clock is not None and steps > self._clock[1]:
            scalars["time/steps_per_second"] = (steps - self._clock[1]) / max(now - self._clock[0], 1e-9)
        if self._clock is None or steps > self._clock[1]:
            self._clock = (now, steps)
        write_scalars(trainer, pl_module, scalars)

    # -- checkpoints -------------------------------------------------------------------------------------

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Some callbacks write checkpoints before this one's hook for the end of a batch.
        self._write_if_due(trainer, pl_module)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        checkpoint.setdefault("learner", {}).update(
            {
                "recorded": _recorded_by_all_ranks(trainer, _recording(pl_module)),
                "written_at": self._written_at,
                "event_files": _event_file_sizes(trainer),
            }
        )

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        saved = checkpoint.get("learner", {})
        # The record of all ranks, for one of them to go on with.
        if "recorded" in saved and trainer.global_rank == 0:
            _recording(pl_module).recorded.load_state_dict(saved["recorded"])
        self._written_at = saved.get("written_at", 0)
        self._saved_event_files = saved.get("event_files", [])


def _recording(pl_module: LightningModule) -> RecordingModule:
    return cast(RecordingModule, pl_module)


def _recorded_by_all_ranks(trainer: Trainer, module: RecordingModule) -> dict[str, Any]:
    """Return the state of the record over all processes; each of them must ask for it."""
    if trainer.world_size == 1:
        return module.recorded.state_dict()
    return merged_totals(gather(module.recorded.totals()))


def _event_directories(trainer: Trainer) -> list[Path]:
    """Return where the TensorBoard loggers write; they write on rank zero alone."""
    if not trainer.is_global_zero:
        return []
    return [Path(each.log_dir) for each in trainer.loggers if isinstance(each, TensorBoardLogger)]


def _event_file_sizes(trainer: Trainer) -> list[dict[str, int]]:
    return [event_file_sizes(directory) for directory in _event_directories(trainer)]
