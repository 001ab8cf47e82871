"""What a run logged to TensorBoard."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gfs.runs.event_files import event_directory


def read_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of every point by tag.

    Files of one second are read in no particular order, and so are the points of a run that was resumed.
    """
    events = EventAccumulator(str(event_directory(run)), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def image_steps(run: Path, tag: str) -> list[int]:
    """Return the steps of a tag's images."""
    events = EventAccumulator(str(event_directory(run)), size_guidance={"images": 0})
    events.Reload()
    return [image.step for image in events.Images(tag)]
