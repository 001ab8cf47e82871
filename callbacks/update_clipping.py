"""Callback for clipping the updates of any optimizer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from typing_extensions import override

from lit_gfs.callbacks.update_rule import UpdateRuleIntervention
from lit_gfs.plasticity import update_clipping as algorithm
from lit_gfs.plasticity.update_clipping import Measure, Reference


class UpdateClipping(UpdateRuleIntervention):
    """Shortens the update that an optimizer makes to a weight or bias if it is too large.

    See `lit_gfs.plasticity.update_clipping.UpdateClipping`. Clipping a gradient does not bound the update of
    an adaptive optimizer, which divides by the gradients of the past. Put it before all other callbacks that
    change weights, because their changes would count as the optimizer's.

    It writes below ``intervention/<name>/``: ``clipped_tensors``, the share of weights and biases whose
    update was shortened in a step; ``scale``, the mean factor on an update.

    Args:
        threshold: Largest size of an update, in units of the reference.
        measure: Size of an update: root mean square (``rms``), or largest magnitude (``max``).
        relative_to: The reference: the learning rate of the weight's group (``rate``), or the root mean
            square of the weight (``weight``).
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, or the module has no layers.

    Example::

        trainer = Trainer(callbacks=[UpdateClipping(threshold=1.0)])
    """

    def __init__(
        self,
        threshold: float = 1.0,
        measure: Measure = "rms",
        relative_to: Reference = "rate",
        name: str = "update_clipping",
    ) -> None:
        self.threshold = threshold
        self.measure: Measure = measure
        self.relative_to: Reference = relative_to
        super().__init__(name)

    @override
    def make_rule(self) -> algorithm.UpdateClipping:
        return algorithm.UpdateClipping(self.threshold, self.measure, self.relative_to)

    @override
    def chooses(self, name: str, weights: Mapping[str, nn.Parameter]) -> bool:
        return True
