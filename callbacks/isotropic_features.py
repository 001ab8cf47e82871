"""Callback for features that are distributed like an isotropic Gaussian."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_gfs.callbacks.auxiliary_loss import AuxiliaryLoss
from lit_gfs.errors import require_between
from lit_gfs.functional.auxiliary_losses import isotropy_penalty, unit_directions
from lit_gfs.utils.seeding import derive_seed, run_seed


class IsotropicFeatures(AuxiliaryLoss):
    """Pulls the distribution of features towards an isotropic Gaussian: SIGReg (Balestriero & LeCun 2025).

    Features that collapse to few directions, or whose units fall silent, are far from it. The term is
    `lit_gfs.functional.auxiliary_losses.isotropy_penalty` of the batch's features, the input of the module's
    ``policy_head``, on random directions. They are drawn for each batch from a generator of their own, seeded
    by the run's seed; all ranks draw the same ones, and each compares the features of its own batch.

    Args:
        coefficient: Weight of the term; 0.05 is LeJEPA's.
        slices: Number of random directions; 16 are usual in deep RL (Saheb et al. 2026, arXiv 2602.19373),
            LeJEPA has 1,024 for images.
        points: Number of points of the integral, as for `epps_pulley`; 17 is LeJEPA's.
        name: Name in tags and in the checkpoint; must differ between all auxiliary losses.

    Raises:
        UserError: If an argument is out of range, or the module has no ``policy_head``.

    Example::

        trainer = Trainer(callbacks=[IsotropicFeatures(coefficient=0.05)])
    """

    def __init__(
        self, coefficient: float = 0.05, slices: int = 16, points: int = 17, name: str = "isotropic_features"
    ) -> None:
        super().__init__(name, coefficient)
        require_between(1, math.inf, slices=slices)
        require_between(2, math.inf, points=points)
        self.slices = slices
        self.points = points
        self._directions: Tensor | None = None
        """Unit vectors in columns, ``(width, slices)``; unknown before the first features."""
        self._generator: torch.Generator | None = None
        self._seed = 0
        self._draws = 0
        """How often directions were drawn; with the seed it determines the next ones."""

    @override
    def term(self, features: Tensor) -> Tensor:
        if self._directions is None:
            self._directions = torch.empty(features.shape[-1], self.slices, device=features.device)
            self._generator = torch.Generator(features.device)
            self._draw(self._directions, self._generator)
        return isotropy_penalty(features, self._directions, self.points)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restored = self._restored
        super().on_train_start(trainer, pl_module)
        self._directions = None
        if restored is not None:
            self._seed, self._draws = restored["seed"], restored["draws"]
        elif trainer.global_step == 0:  # else the same Trainer continues to fit
            self._seed, self._draws = derive_seed(self.name, run_seed()), 0

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not within the term, which a CUDA graph may replay. A batch without a term counts too.
        self._draws += 1
        if self._directions is not None and self._generator is not None:
            self._draw(self._directions, self._generator)

    @override
    def state_dict(self) -> dict[str, Any]:
        own = {"seed": self._seed, "draws": self._draws}
        return self._restored if self._restored is not None else {**super().state_dict(), **own}

    @torch.no_grad()
    def _draw(self, directions: Tensor, generator: torch.Generator) -> None:
        """Draw the directions of the batch, in place."""
        generator.manual_seed(self._seed + self._draws)
        directions.copy_(unit_directions(directions.normal_(generator=generator)))
