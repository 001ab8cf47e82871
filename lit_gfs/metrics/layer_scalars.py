"""Scalars of single layers: as charts of their own, or hidden from TensorBoard's charts.

A deep network has hundreds of such scalars. Nobody reads so many charts, but the diagnosis, the studies and
later questions need the numbers. So by default they go to the event file as a tensor that no dashboard shows:
the JSON text of tags and values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_gfs.metrics.module_protocol import tell_listeners, write_scalars, x_axis

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

_END_OF_TAG = "/layers"


def write_measurement(
    trainer: Trainer,
    pl_module: LightningModule,
    source: str,
    scalars: Mapping[str, float],
    of_layers: Mapping[str, float],
    per_layer: bool,
) -> None:
    """Write the scalars of a measurement, at the current position on the x axis.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        source: Who measured; a tensor of scalars of layers has the tag ``<source>/layers``.
        scalars: Values of the whole network by tag.
        of_layers: Values of single layers by tag, ``<quantity>/<layer>``.
        per_layer: Whether loggers get the values of layers as scalars too. Otherwise TensorBoard's event file
            alone has them.
    """
    if per_layer or not of_layers:
        write_scalars(trainer, pl_module, {**scalars, **of_layers})
        return
    write_scalars(trainer, pl_module, scalars)
    step = x_axis(trainer, pl_module)
    rounded = {tag: float(f"{value:.7g}") for tag, value in of_layers.items()}  # the digits of float32
    # ASCII: TensorBoard does not read back the unsigned bytes that PyTorch writes.
    text = torch.frombuffer(bytearray(json.dumps(rounded), "ascii"), dtype=torch.int8)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            logger.experiment.add_tensor(source + _END_OF_TAG, text, step)
    tell_listeners(trainer, step, of_layers)


def read_layer_scalars(events: EventAccumulator) -> Iterator[tuple[str, ScalarEvent]]:
    """Yield tags and points of all scalars that `write_measurement` has hidden in events.

    Args:
        events: Loaded events, with all tensors (``size_guidance={"tensors": 0}``).
    """
    from tensorboard.backend.event_processing.event_accumulator import ScalarEvent
    from tensorboard.util.tensor_util import make_ndarray

    for hidden in events.Tags()["tensors"]:
        if not hidden.endswith(_END_OF_TAG):
            continue
        for event in events.Tensors(hidden):
            for tag, value in json.loads(make_ndarray(event.tensor_proto).tobytes()).items():
                yield tag, ScalarEvent(event.wall_time, event.step, value)
