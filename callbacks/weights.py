"""Monitor of weights: norms, distances from the start, and spectra of all layers."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from typing_extensions import override

from lit_gfs.errors import UserError, require_between
from lit_gfs.metrics.gradient_flow import parameters_by_layer
from lit_gfs.metrics.layer_scalars import write_measurement
from lit_gfs.metrics.module_protocol import layers_of
from lit_gfs.metrics.pace import Interval, Pace, interval_in
from lit_gfs.metrics.weight_statistics import weight_statistics
from lit_gfs.steps.step_guard import require_whole_gradients

_TAGS = {
    "norm": "norm",
    "distance": "distance",
    "largest_singular_value": "singular_value",
    "stable_rank": "stable_rank",
}


class WeightMonitor(Callback):
    """Logs how large the weights are, how far they have moved, and how many directions they use.

    It writes to all loggers after the first optimizer step, and then every ``every_n_steps`` steps, the means
    over layers of these numbers (`lit_gfs.metrics.weight_statistics`):

    - ``weights/norm``: 2-norm of a layer's parameters;
    - ``weights/distance``: their distance from the initial ones, relative to the initial norm;
    - ``weights/singular_value``: largest singular value of a layer's matrix;
    - ``weights/stable_rank``: squared Frobenius norm over squared largest singular value.

    With ``per_layer`` it also writes each of them as ``<tag>/<layer>``. Otherwise TensorBoard's event file
    has these numbers as a tensor without a chart. Layers are those that are trained at the start of fitting.
    The initial weights are part of the checkpoint.

    Args:
        every_n_steps: Optimizer steps between two measurements; ``auto`` measures about 100 times in a run,
            but at most in every 100th step.
        per_layer: Whether each layer has charts of its own.

    Raises:
        UserError: If an argument is out of range, or the module has no trainable layer.
        MisconfigurationException: If the strategy shards weights.

    Example::

        trainer = Trainer(callbacks=[WeightMonitor(every_n_steps=1000)])
    """

    pace: ClassVar[Pace] = Pace(points=100, least=100, otherwise=1000)
    """What an interval of ``auto`` stands for."""

    def __init__(self, every_n_steps: Interval = "auto", per_layer: bool = False) -> None:
        if every_n_steps != "auto":
            require_between(1, math.inf, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.per_layer = per_layer
        self.interval = 1
        """Optimizer steps between two measurements of the run."""
        self._layers: dict[str, list[Tensor]] = {}
        self._initial: dict[str, list[Tensor]] = {}
        self._measured_at: int | None = None
        self._restored: dict[str, Any] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            require_whole_gradients(trainer, type(self).__name__, "weights")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is None and trainer.global_step > 0:
            self._restored = self.state_dict()  # the same Trainer continues to fit
        owned = parameters_by_layer(layers_of(pl_module))
        self._layers = {name: list(parameters) for name, parameters in owned.items()}
        if not self._layers:
            raise UserError(
                f"{type(pl_module).__name__} has no trainable layer: expected at least one module with "
                "parameters that require gradients"
            )

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Initializations act when fitting starts.
        self.interval = interval_in(trainer, self.every_n_steps, self.pace)
        self._initial = {name: [each.detach().clone() for each in own] for name, own in self._layers.items()}
        self._measured_at = None
        if self._restored is None:
            return
        for name, saved in self._restored["initial"].items():
            if name in self._initial:
                self._initial[name] = [value.to(pl_module.device) for value in saved]
        self._measured_at = self._restored["measured_at"]
        self._restored = None

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        is_due = self._measured_at is None or step // self.interval > self._measured_at // self.interval
        if not step or not is_due:
            return
        self._measured_at = step
        if trainer.is_global_zero:
            self._write(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:
            return self._restored
        initial = {name: [each.clone() for each in own] for name, own in self._initial.items()}
        return {"initial": initial, "measured_at": self._measured_at}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Layers are unknown until fitting starts.
        self._restored = state_dict

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = weight_statistics(self._layers, self._initial)
        rows = torch.stack(list(measured.values())).cpu()  # a single transfer to the host
        scalars, of_layers = {}, {}
        for quantity, row in zip(measured, rows, strict=True):
            tag = f"weights/{_TAGS[quantity]}"
            known = {
                name: value for name, value in zip(self._layers, row.tolist(), strict=True) if value == value
            }
            if known:
                scalars[tag] = math.fsum(known.values()) / len(known)
            of_layers.update({f"{tag}/{name}": value for name, value in known.items()})
        write_measurement(trainer, pl_module, "weights", scalars, of_layers, self.per_layer)
