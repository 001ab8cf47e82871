"""What every run adds to the options of Lightning's Trainer, from YAML and from Python alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar

from lit_gfs.callbacks.diagnosis import Diagnosis
from lit_gfs.callbacks.progress import StepProgressBar
from lit_gfs.callbacks.release_freed_memory import ReleaseFreedMemory
from lit_gfs.callbacks.summary import RunSummary
from lit_gfs.runs.checkpoint_io import ChecksummedCheckpointIO
from lit_gfs.utils.lightning_overhead import Untimed
from lit_gfs.utils.working_directory import working_directory

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,  # the datamodule's total_steps ends a run
    "devices": 1,
    "log_every_n_steps": 50,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
"""Options of the Trainer whose defaults differ from Lightning's."""


def complete_options(options: Mapping[str, Any], interventions: Sequence[Callback]) -> dict[str, Any]:
    """Complete a Trainer's options: interventions before the user's callbacks, checksummed checkpoints.

    Args:
        options: The options that were chosen.
        interventions: Callbacks with a key, in their order.
    """
    # Before the user's own callbacks, so that the first intervention sees the raw gradients.
    callbacks = [*interventions, *_as_list(options.get("callbacks"))]
    for callback in callbacks:
        # Not every epoch ends with an evaluation. Checked after each epoch, one score would use up the
        # patience, and there would be no score before the first evaluation.
        if isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end is None:
            callback._check_on_train_epoch_end = False
    return {
        **options,
        "callbacks": callbacks,
        "plugins": [*_as_list(options.get("plugins")), ChecksummedCheckpointIO()],
        "default_root_dir": options.get("default_root_dir") or str(working_directory()),
        "profiler": options.get("profiler") or Untimed(),
    }


def reporting_callbacks(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks that end a fit's list, but for the progress bar.

    Args:
        callbacks: Those before; a `Diagnosis` among them stays the only one.
    """
    # The diagnosis prints its findings before the summary.
    has_diagnosis = any(isinstance(each, Diagnosis) for each in callbacks)
    return [*([] if has_diagnosis else [Diagnosis()]), RunSummary(), ReleaseFreedMemory()]


def progress_bar(options: Mapping[str, Any]) -> list[Callback]:
    """Return the progress bar, unless it is switched off or the user has another."""
    has_bar = any(isinstance(each, ProgressBar) for each in options["callbacks"])
    return [] if options.get("enable_progress_bar") is False or has_bar else [StepProgressBar()]


def _as_list(values: Any) -> list[Any]:
    if values is None:
        return []
    return values if isinstance(values, list) else [values]
