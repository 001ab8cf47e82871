"""Base of the callbacks that reset weights or the memory of optimizers now and then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from typing_extensions import override

from lit_gfs.callbacks.ema_weights import EMAWeights
from lit_gfs.callbacks.path_init import PathSensitiveInit
from lit_gfs.callbacks.weight_intervention import SteppedLayers, WeightIntervention
from lit_gfs.optim.moments import kept_memory
from lit_gfs.plasticity.fresh_weights import Fresh, draw_by, draw_layers, orthogonal_gains
from lit_gfs.utils.seeding import derive_seed, run_seed


class ResetIntervention(WeightIntervention):
    """Base of the callbacks that reset something after some optimizer steps.

    A subclass says with `is_due` after which steps it acts, and acts in `reset`. That is called at the end of
    the batch, when the step is over, also for an optimizer that skips steps on the device.

    Draws depend on the run's seed and the number of steps alone. So a resumed run repeats them, all ranks
    draw the same, and other draws of the run do not change.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._due: list[SteppedLayers] = []

    def is_due(self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers) -> bool:
        """Return whether to act after the step that ``part.steps`` counts last."""
        raise NotImplementedError

    def reset(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers
    ) -> Mapping[str, Tensor]:
        """Reset something in place, under ``no_grad``; return scalars as `intervene` does."""
        raise NotImplementedError

    @override
    def intervene(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers
    ) -> Mapping[str, Tensor]:
        if self.is_due(trainer, pl_module, part):
            self._due.append(part)
        return {}

    @override
    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        due, self._due = self._due, []
        for part in due:
            self._add(self.reset(trainer, pl_module, part))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def fresh_weights(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers, layers: Iterable[nn.Module]
    ) -> Fresh:
        """Draw new values for the parameters of layers, as they were initialized; the layers do not change.

        With `PathSensitiveInit` the whole module is initialized by it, on the side. Else networks and heads
        of this package are orthogonal where they were, and other layers follow their ``reset_parameters``.
        """
        seed = derive_seed(self.name, run_seed(), self._parts.index(part), part.steps)
        initialization = path_init_of(trainer)
        if initialization is not None:
            return draw_by(partial(initialization.initialize_, pl_module), pl_module, seed)
        return draw_layers(layers, orthogonal_gains(pl_module), seed)

    def warn_of_kept_memory(self) -> None:
        """Tell of the optimizers that cannot forget parts of their memory."""
        for part in self._parts:
            if kept := kept_memory(part.optimizer):
                rank_zero_warn(
                    f"{type(self).__name__} resets weights, but {type(part.optimizer).__name__} keeps {kept}"
                )


def path_init_of(trainer: Trainer) -> PathSensitiveInit | None:
    """Return the run's `PathSensitiveInit`, if there is one."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, PathSensitiveInit)), None)


def tell_averages(
    trainer: Trainer, pl_module: LightningModule, entries: Mapping[nn.Parameter, Tensor]
) -> None:
    """Let averages of the weights take over entries that were reset: `EMAWeights`."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMAWeights):
            callback.take_over(pl_module, entries)
