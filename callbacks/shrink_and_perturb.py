"""Callback for shrinking weights and perturbing them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lit_gfs.callbacks.weight_intervention import SteppedLayers
from lit_gfs.callbacks.weight_rule import WeightRuleIntervention, has_matrix
from lit_gfs.errors import UserError, require_between
from lit_gfs.plasticity import shrink_and_perturb as algorithm
from lit_gfs.utils.seeding import run_seed


class ShrinkAndPerturb(WeightRuleIntervention):
    """Shrinks weights and adds noise of their initializer's scale: every few steps, or at shifts.

    See `lit_gfs.plasticity.shrink_and_perturb.ShrinkAndPerturb`. The defaults are a soft form, a little every
    ten steps. A hard form acts when the objective shifts, before the first step on the new one:
    ``every_n_steps: 0``, ``on_shift: true``, ``shrink: 0.5``. Weights and biases of layers with a matrix
    change; normalizations do not. The noise follows from the run's seed and the number of draws, so all ranks
    draw the same numbers, and a resumed run goes on with the next ones. Put it before `StaticSparsity`.

    It writes ``intervention/<name>/relative_size``: the mean ratio of a weight's root mean square to its
    initial one, after the change.

    Args:
        shrink: Factor on the weights.
        noise: Standard deviation of the noise, in units of the initial root mean square; ``null`` is
            sqrt(1 - shrink^2), which keeps this size without gradients.
        every_n_steps: Optimizer steps between two changes; 0 for none by steps.
        on_shift: Whether weights also change at each announced shift of the objective.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, no change would ever happen, or the module has no matrix.

    Example::

        trainer = Trainer(callbacks=[ShrinkAndPerturb(shrink=0.5, every_n_steps=0, on_shift=True)])
    """

    def __init__(
        self,
        shrink: float = 0.9999,
        noise: float | None = None,
        every_n_steps: int = 10,
        on_shift: bool = False,
        name: str = "shrink_and_perturb",
    ) -> None:
        require_between(0, float("inf"), every_n_steps=every_n_steps)
        if not (every_n_steps or on_shift):
            raise UserError(
                "every_n_steps is 0 and on_shift is false, so no weight would ever change; expected "
                "every_n_steps of at least 1, or on_shift true"
            )
        self.shrink = shrink
        self.noise = noise
        self.every_n_steps = every_n_steps
        self.on_shift = on_shift
        super().__init__(name)

    @override
    def make_rule(self) -> algorithm.ShrinkAndPerturb:
        return algorithm.ShrinkAndPerturb(self.shrink, self.noise, run_seed())

    @override
    def chooses(self, name: str, weights: Mapping[str, nn.Parameter]) -> bool:
        return has_matrix(name, weights)

    @override
    def intervene(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers
    ) -> Mapping[str, Tensor]:
        if not self.every_n_steps or part.steps % self.every_n_steps:
            return {}
        return super().intervene(trainer, pl_module, part)

    @torch.no_grad()
    def on_objective_shift(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
        """Change the weights at once, before the first step on the new objective."""
        if not (self.on_shift and self.is_running):
            return
        for part in self._parts:
            self._add(super().intervene(trainer, pl_module, part))
