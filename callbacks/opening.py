"""Five lines that describe a run before it trains."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_gfs.callbacks.summary import logger_directories, run_directory
from lit_gfs.metrics.module_protocol import trained_parameters
from lit_gfs.utils.formats import relative_path


class RunOpening(Callback):
    """Prints the directory, device, network, interventions and seed of a run once, when training starts.

    Put it before progress bars, so that its lines come first.

    Args:
        interventions: Names of the interventions and monitors that are on.
        seed: The run's seed; ``None`` if there is none.
        remark: A line for stderr, about an option that gave way; empty for none.

    Example::

        trainer = Trainer(callbacks=[RunOpening(["temporal_clipping"], seed=0), TemporalGradientClipping()])
    """

    def __init__(self, interventions: Sequence[str] = (), seed: int | None = None, remark: str = "") -> None:
        self.interventions = interventions
        self.seed = seed
        self.remark = remark

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if self.remark:
            print("lit_gfs:", self.remark, file=sys.stderr, flush=True)
        directory = run_directory(trainer, logger_directories(trainer))
        rows = {
            "directory": "none" if directory is None else relative_path(directory),
            "device": f"{_devices(trainer)}, precision {trainer.precision}",
            "network": describe_network(trainer, pl_module),
            "gfs": ", ".join(self.interventions) or "none",
            "seed": "none" if self.seed is None else str(self.seed),
        }
        width = max(map(len, rows))
        print(*(f"{name:{width}}  {value}" for name, value in rows.items()), sep="\n", flush=True)


def describe_network(trainer: Trainer, pl_module: LightningModule) -> str:
    """Return the size of the module's ``trunk``, if it has one, and the number of trained parameters."""
    trained = {p for optimizer in trainer.optimizers for p in trained_parameters(optimizer)}
    parameters = f"{sum(parameter.numel() for parameter in trained):,} trained parameters"
    trunk = getattr(pl_module, "trunk", None)
    depth, width = getattr(trunk, "depth", None), getattr(trunk, "width", None)
    if not (isinstance(depth, int) and isinstance(width, int)):
        return parameters
    layers = f"{depth} layer{'' if depth == 1 else 's'}"
    return f"{type(trunk).__name__} of {layers} x {width} units, {parameters}"


def _devices(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return kind if trainer.world_size == 1 else f"{trainer.world_size} x {kind}"
