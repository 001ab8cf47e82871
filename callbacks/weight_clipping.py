"""Callback for weight clipping."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from typing_extensions import override

from lit_gfs.callbacks.weight_rule import WeightRuleIntervention, has_matrix
from lit_gfs.plasticity import weight_clipping as algorithm


class WeightClipping(WeightRuleIntervention):
    """Clips weights and biases to a multiple of their layer's initial bound after each step.

    See `lit_gfs.plasticity.weight_clipping.WeightClipping`. Layers without a matrix, such as normalizations,
    are left alone.

    It writes below ``intervention/<name>/``: ``clipped_tensors``, the share of weights and biases of layers
    in which a number was clipped; ``excess``, the largest ratio of a number to its limit.

    Args:
        kappa: The multiple of the initial bound.
        first_layer: Whether layers that read no other layer are clipped too.
        last_layer: Whether layers that no other layer reads are clipped too.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, or the module has no matrix.

    Example::

        trainer = Trainer(callbacks=[WeightClipping(kappa=2.0)])
    """

    def __init__(
        self,
        kappa: float = 1.0,
        first_layer: bool = True,
        last_layer: bool = True,
        name: str = "weight_clipping",
    ) -> None:
        self.kappa = kappa
        super().__init__(name, first_layer, last_layer)

    @override
    def make_rule(self) -> algorithm.WeightClipping:
        return algorithm.WeightClipping(self.kappa)

    @override
    def chooses(self, name: str, weights: Mapping[str, nn.Parameter]) -> bool:
        return has_matrix(name, weights)
