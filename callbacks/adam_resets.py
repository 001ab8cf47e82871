"""Callback that resets the state of Adam when the objective changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_gfs.callbacks.reset_intervention import ResetIntervention
from lit_gfs.callbacks.weight_intervention import SteppedLayers
from lit_gfs.errors import UserError, require_between, require_one_of
from lit_gfs.metrics.module_protocol import write_scalars
from lit_gfs.optim.moments import AdamReset, require_adam, reset_adam_


class AdamResets(ResetIntervention):
    """Resets the state of Adam when the objective changes, or every so many optimizer steps.

    Adam's moments are averages over thousands of gradients. After a new target network, a new rollout or new
    labels these belong to another objective; see `lit_gfs.optim.moments.reset_adam_` for the two remedies.
    The agents of this package announce such changes. Any LightningModule or datamodule can do so with
    `lit_gfs.steps.objective_shift.announce_objective_shift`. Resets are no changes of the objective, so
    none is announced.

    It writes ``intervention/<name>/resets``, the number of resets so far.

    Args:
        mode: ``step`` resets the step count alone (Adam-Rel, Ellis et al. 2024, arXiv 2412.17113);
            ``moments`` resets the moments with it (Asadi et al. 2023, arXiv 2306.17833).
        on_shift: Whether to reset when the objective changes.
        every_n_steps: Optimizer steps between two further resets; ``null`` for none.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, nothing would ever be reset, or an optimizer is not Adam,
            AdamW, RAdam or NAdam.

    Example::

        trainer = Trainer(callbacks=[AdamResets(mode="step")])
    """

    def __init__(
        self,
        mode: AdamReset = "step",
        on_shift: bool = True,
        every_n_steps: int | None = None,
        name: str = "adam_resets",
    ) -> None:
        super().__init__(name)
        require_one_of(get_args(AdamReset), mode=mode)
        require_between(1, float("inf"), every_n_steps=every_n_steps)
        if not on_shift and every_n_steps is None:
            raise UserError(
                "on_shift is False and every_n_steps is null, so nothing would be reset; expected one of them"
            )
        self.mode: AdamReset = mode
        self.on_shift = on_shift
        self.every_n_steps = every_n_steps
        self.resets = 0
        """Number of resets so far."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        for optimizer in trainer.optimizers:
            require_adam(optimizer, type(self).__name__)

    @override
    def begin(self, trainer: Trainer, pl_module: LightningModule, parts: list[SteppedLayers]) -> None:
        self.resets = 0

    def on_objective_shift(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
        """Reset the state of all optimizers; see `announce_objective_shift`."""
        if self.on_shift and self.is_running:
            for part in self._parts:
                reset_adam_(part.optimizer, self.mode)
            self.resets += 1

    @override
    def is_due(self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers) -> bool:
        return self.every_n_steps is not None and part.steps % self.every_n_steps == 0

    @override
    def reset(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers
    ) -> Mapping[str, Tensor]:
        reset_adam_(part.optimizer, self.mode)
        self.resets += part is self._parts[0]  # optimizers that step together count once
        return {}

    @override
    def saved(self) -> dict[str, Any]:
        return {"resets": self.resets}

    @override
    def restore(self, saved: dict[str, Any]) -> None:
        self.resets = saved["resets"]

    @override
    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        write_scalars(trainer, pl_module, {f"intervention/{self.name}/resets": float(self.resets)})
