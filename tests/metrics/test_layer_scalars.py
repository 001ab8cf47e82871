"""Scalars of layers without charts come back from the event file, and reach the diagnosis."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger

from lit_gfs.metrics.layer_scalars import write_measurement
from lit_gfs.runs.logged_scalars import logged_scalars
from support.event_files import read_scalars
from support.training import quiet_trainer

OF_NETWORK = {"a/ratio": 2.0}
OF_LAYERS = {"a/norm/trunk.layer_02": 0.1234567, "a/norm/trunk.layer_01": math.inf, "a/norm/head": math.nan}


class Listener(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: dict[str, float] = {}

    def on_scalars(self, step: int, scalars: dict[str, float]) -> None:
        self.heard |= scalars


def write(directory: Path, per_layer: bool) -> Listener:
    listener = Listener()
    logger = TensorBoardLogger(directory, name="", version="")
    trainer = quiet_trainer(logger=logger, callbacks=[listener])
    write_measurement(trainer, BoringModel(), "a", OF_NETWORK, OF_LAYERS, per_layer)
    logger.finalize("success")
    return listener


@pytest.mark.parametrize("per_layer", [False, True])
def test_they_are_read_back_with_or_without_charts(tmp_path: Path, per_layer: bool) -> None:
    heard = write(tmp_path, per_layer).heard

    values = {
        tag: [(point.step, point.value) for point in points]
        for tag, points in logged_scalars(tmp_path).items()
    }
    assert list(heard) == list(values) == [*OF_NETWORK, *OF_LAYERS]
    for tag, value in (OF_NETWORK | OF_LAYERS).items():
        assert values[tag] == [(0, pytest.approx(value, rel=1e-6, nan_ok=True))]


def test_they_have_no_charts_by_default(tmp_path: Path) -> None:
    write(tmp_path, per_layer=False)

    assert list(read_scalars(tmp_path)) == ["a/ratio"]
