"""Callback for Normalize-and-Project's projection of weights."""

from __future__ import annotations

from typing_extensions import override

from lit_gfs.callbacks.weight_rule import WeightRuleIntervention
from lit_gfs.plasticity.projection import NormProjection


class WeightProjection(WeightRuleIntervention):
    """Keeps the norm of each weight matrix at its initial value, as Normalize-and-Project does.

    See `lit_gfs.plasticity.projection.NormProjection`. The other half of the method is a normalization
    before each activation: ``norm: layer`` of the trunk. Biases, and gains and offsets of normalizations,
    are free; `PullToInit` with ``parameters: vectors`` can hold them. Put it after all other callbacks that
    change weights.

    It writes below ``intervention/<name>/``: ``scale`` and ``smallest_scale``, the mean and the smallest
    factor on a matrix in a step.

    Args:
        first_layer: Whether layers that read no other layer are projected too.
        last_layer: Whether layers that no other layer reads are projected too.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If the module has no matrix to project.

    Example::

        trainer = Trainer(callbacks=[WeightProjection()])
    """

    def __init__(
        self, first_layer: bool = True, last_layer: bool = True, name: str = "weight_projection"
    ) -> None:
        super().__init__(name, first_layer, last_layer)

    @override
    def make_rule(self) -> NormProjection:
        return NormProjection()
