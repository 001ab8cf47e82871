"""Reads back what a run has logged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import ScalarEvent


def logged_scalars(directory: Path) -> dict[str, list[ScalarEvent]]:
    """Return the points of all scalars by tag, those of single layers included, in the order of the files.

    Args:
        directory: Directory with event files.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lit_gfs.metrics.layer_scalars import read_layer_scalars

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for tag, point in read_layer_scalars(events):
        scalars.setdefault(tag, []).append(point)
    return scalars
