"""Callback for parameters that stay near the initial ones."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_gfs.callbacks.auxiliary_loss import AuxiliaryLoss
from lit_gfs.functional.auxiliary_losses import squared_distance
from lit_gfs.metrics.module_protocol import optimized_parameters
from lit_gfs.steps.parameter_snapshot import ParameterSnapshot


class L2Init(AuxiliaryLoss):
    """Pulls parameters towards their initial values: L2 Init (Kumar et al. 2023, arXiv 2308.11958).

    Where the loss does not need a weight any more, it returns to its initial value, from which it can learn
    again. The term is the squared distance of all parameters of the optimizer from their initial values,
    those of the first step: after initialization by other callbacks. They are part of the checkpoint. A run
    that resumes from a checkpoint without them takes the parameters of then.

    Args:
        coefficient: Weight of the term.
        name: Name in tags and in the checkpoint; must differ between all auxiliary losses.

    Raises:
        UserError: If the coefficient is negative.

    Example::

        trainer = Trainer(callbacks=[L2Init(coefficient=1e-3)])
    """

    def __init__(self, coefficient: float = 1e-2, name: str = "l2_init") -> None:
        super().__init__(name, coefficient)
        self._initial: ParameterSnapshot | None = None

    @override
    def term(self) -> Tensor:
        assert self._initial is not None
        return squared_distance(
            list[Tensor](self._initial.parameters.values()), list(self._initial.values.values())
        )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The hooks in which callbacks initialize weights have run.
        restored = self._restored
        super().on_train_start(trainer, pl_module)
        kept = None if self._initial is None or trainer.global_step == 0 else self._initial.state_dict()
        self._initial = ParameterSnapshot(optimized_parameters(trainer, pl_module))
        if restored is not None:
            self._initial.load_state_dict(restored["initial"])
        elif kept is not None:  # the same Trainer continues to fit
            self._initial.load_state_dict(kept)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None or self._initial is None:
            return super().state_dict()
        return {**super().state_dict(), "initial": self._initial.state_dict()}
