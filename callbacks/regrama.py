"""Callback that resets units whose weights hardly get a gradient (ReGraMa)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lit_gfs.callbacks.unit_resets import UnitResets
from lit_gfs.callbacks.weight_intervention import SteppedLayers
from lit_gfs.metrics.module_protocol import trained_parameters
from lit_gfs.metrics.unit_gradients import gradient_scores
from lit_gfs.plasticity.unit_layers import UnitLayer
from lit_gfs.steps.step_guard import unscale_gradients
from lit_gfs.steps.step_witness import StepWitness


class ReGraMa(UnitResets):
    """Resets units whose weights hardly get a gradient (GraMa, Liu et al. 2025, arXiv 2505.24061).

    A unit's score is the mean absolute gradient of its incoming weights, divided by the mean of its layer
    (`lit_gfs.metrics.unit_gradients.gradient_scores`). Units with a score of at most ``tau`` are reset; see
    `UnitResets`. The gradients are those of an optimizer step as they arrive here, so put it before callbacks
    that change gradients. No further forward or backward pass is needed, and activations need not be modules.

    A step with a gradient that is not finite resets nothing, and neither does one without any gradient. An
    active unit may have no gradient for a while, such as one that no example of the batch activates; its
    reset then changes outputs.

    Args:
        every_n_steps: Optimizer steps between two resets.
        tau: A unit is reset if its mean absolute gradient is at most this share of its layer's mean.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, the module lacks ``example_input_array``, or no layer has
            units that can be reset.

    Example::

        trainer = Trainer(callbacks=[ReGraMa(every_n_steps=1_000)])
    """

    def __init__(self, every_n_steps: int = 1_000, tau: float = 0.01, name: str = "grama") -> None:
        super().__init__(every_n_steps, tau, name)
        self._scores: dict[Optimizer, dict[str, Tensor]] = {}
        """Scores by layer of the step that is about to be taken, by optimizer."""
        self._witness = StepWitness(type(self).__name__)

    @override
    def begin(self, trainer: Trainer, pl_module: LightningModule, parts: list[SteppedLayers]) -> None:
        super().begin(trainer, pl_module, parts)
        self._scores = {}
        self._witness.begin(trainer)

    @override
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._witness.see()
        part = self._parts[trainer.optimizers.index(optimizer)]
        gradients = [p.grad for p in trained_parameters(optimizer) if p.grad is not None]
        is_due = gradients and (part.steps + 1) % self.every_n_steps == 0
        if is_due and unscale_gradients(trainer, optimizer):
            trained = set(part.trained)
            sizes = torch.stack([each.norm().to(pl_module.device) for each in gradients])
            # Behind a layer that is dead as a whole, all units have scores of 0, but heads and biases have
            # gradients. Without those, as after a loss of 0, units cannot be told apart.
            is_known = (sizes.max() > 0) & (sizes < torch.inf).all()
            self._scores[optimizer] = {
                name: torch.where(is_known, gradient_scores(layer.weight.grad), torch.nan)
                for name, layer in self.units.layers.items()
                if layer.weight.grad is not None and id(layer.weight) in trained
            }

    @override
    def scores(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        part: SteppedLayers,
        layers: Mapping[str, UnitLayer],
    ) -> dict[str, Tensor]:
        known = self._scores.pop(part.optimizer, {})
        return {name: known[name] for name in layers if name in known}

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._witness.end(trainer)
