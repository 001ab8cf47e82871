"""Callback for outputs that change little on states that a step does not learn from."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lit_gfs.callbacks.auxiliary_loss import AuxiliaryLoss
from lit_gfs.errors import require_between
from lit_gfs.functional.auxiliary_losses import mean_squared_change
from lit_gfs.metrics.module_protocol import observations_of, optimized_parameters, require_policy_features
from lit_gfs.steps.parameter_snapshot import ParameterSnapshot
from lit_gfs.steps.second_pass import policy_outputs
from lit_gfs.utils.ranks import gather
from lit_gfs.utils.transfers import send

_REMEMBERED = 50_000
"""Number of batches that the mean sizes of loss and term go back."""


class ChurnPenalty(AuxiliaryLoss):
    """Reduces churn: C-CHAIN (Tang et al. 2025, arXiv 2506.00592).

    A step on one batch also changes the outputs on all other states. The term is the mean squared difference
    of the outputs of the module's ``policy_head`` (action values, logits, means of actions) with the
    parameters of now and those before the last optimizer step, on the observations of the batch before. These
    are two further passes in evaluation mode, one of them without gradients. In the first step the term is 0.

    The weight is ``coefficient`` for the first ``warmup`` batches. Later it follows the loss: the term's
    share is ``relative_scale`` times the mean absolute loss of the module, with means over all batches so
    far, at most about 50,000. Under DDP these are means over the ranks. Parameters, observations and means
    are part of the checkpoint.

    Args:
        relative_scale: Size of the weighted term relative to the loss; ``null`` keeps the coefficient.
        coefficient: Weight of the term until then.
        warmup: Batches until then.
        name: Name in tags and in the checkpoint; must differ between all auxiliary losses.

    Raises:
        UserError: If an argument is out of range, the module lacks ``policy_head`` or ``policy_features``, or
            a batch has no observations.

    Example::

        trainer = Trainer(callbacks=[ChurnPenalty(relative_scale=0.02)])
    """

    def __init__(
        self,
        relative_scale: float | None = 0.05,
        coefficient: float = 100.0,
        warmup: int = 10_000,
        name: str = "churn_penalty",
    ) -> None:
        super().__init__(name, coefficient)
        require_between(0, math.inf, relative_scale=relative_scale, warmup=warmup)
        self.relative_scale = relative_scale
        self.warmup = warmup
        self._previous: ParameterSnapshot | None = None
        """The parameters before the last optimizer step."""
        self._reference: Tensor | None = None
        """The observations of the batch before, ``(batch, *shape)``, in memory that stays in place."""
        self._following: Tensor | None = None
        """Those of this batch, for the next one."""
        self._weight = torch.tensor(coefficient)
        self._seen = torch.full((2,), math.nan)
        """Absolute loss and term of this batch; NaN without a loss."""
        self._sizes = torch.zeros(2)
        """Their means over the batches so far."""
        self._batches = 0
        """Number of batches that have begun."""

    @override
    def term(self, module: LightningModule) -> Tensor:
        assert self._previous is not None
        assert self._reference is not None
        outputs = policy_outputs(module, self._reference)
        with torch.no_grad():
            before = policy_outputs(module, self._reference, self._previous.values)
        return mean_squared_change(outputs, before)

    @override
    def weighted(self, value: Tensor, loss: Tensor) -> Tensor:
        self._seen.copy_(torch.stack([loss.detach().abs(), value.detach()]))
        return self._weight * value

    # -- Hooks of Lightning ------------------------------------------------------------------------------

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_policy_features(pl_module, type(self).__name__)
        super().on_fit_start(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restored = self._restored
        super().on_train_start(trainer, pl_module)
        device = pl_module.device
        self._previous = ParameterSnapshot(optimized_parameters(trainer, pl_module))
        self._reference = self._following = None
        self._weight = torch.tensor(self.coefficient, device=device)
        if restored is not None:
            self._previous.load_state_dict(restored["previous"])
            self._batches = restored["batches"]
            self._sizes, self._seen = (restored[name].to(device) for name in ("sizes", "seen"))
            if trainer.global_rank < len(restored["following"]):
                self._following = restored["following"][trainer.global_rank].to(device)
        elif trainer.global_step == 0:  # else the same Trainer continues to fit
            self._batches = 0
            self._sizes, self._seen = torch.zeros(2, device=device), torch.full((2,), math.nan, device=device)
        self._weigh()

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not at the end of a batch, where other callbacks may have written a checkpoint already.
        observations = observations_of(batch, type(self).__name__)
        if self._following is None:
            self._following = observations.detach().clone()
        if self._reference is None:
            self._reference = self._following.clone()
        self._reference.copy_(self._following)
        self._following.copy_(_rows(observations, len(self._following)))
        if self._batches:
            self._follow(trainer)
        self._batches += 1
        self._seen.fill_(math.nan)  # a batch may have no loss

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        assert self._previous is not None
        self._previous.take()

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None or self._previous is None:
            return super().state_dict()
        return {
            **super().state_dict(),
            "previous": self._previous.state_dict(),
            "sizes": self._sizes,
            "seen": self._seen,
            "batches": self._batches,
            "following": [] if self._following is None else [self._following],
        }

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Each rank has a batch of its own, and Lightning collects the states of one.
        state = checkpoint["callbacks"].get(self.state_key, {})
        if trainer.world_size > 1 and "following" in state:
            state["seen"] = trainer.strategy.reduce(self._seen.clone(), reduce_op="mean")
            gathered = gather([each.cpu() for each in state["following"]])
            state["following"] = [each for of_rank in gathered for each in of_rank]

    # ----------------------------------------------------------------------------------------------------

    def _follow(self, trainer: Trainer) -> None:
        """Let the mean sizes of loss and term follow those of the batch before, and the weight them."""
        seen = self._seen
        if trainer.world_size > 1:
            seen = trainer.strategy.reduce(seen.clone(), reduce_op="mean")
        # A batch without a finite loss changes nothing.
        sizes = torch.where(seen.isfinite().all(), seen, self._sizes)
        self._sizes.lerp_(sizes, max(1 / self._batches, 1 / _REMEMBERED))
        self._weigh()

    def _weigh(self) -> None:
        if self.relative_scale is not None and self._batches >= self.warmup:
            self._weight.copy_(self.relative_scale * self._sizes[0] / (self._sizes[1] + 1e-8))


def _rows(observations: Tensor, count: int) -> Tensor:
    """Return so many observations, because a CUDA graph needs one shape; those of a smaller batch repeat."""
    if len(observations) == count:
        return observations
    return observations[send(torch.arange(count) % len(observations), observations.device)]
