"""Callback for spectral normalization by projection."""

from __future__ import annotations

from typing_extensions import override

from lit_gfs.callbacks.weight_rule import WeightRuleIntervention
from lit_gfs.plasticity.spectral_limit import SpectralLimit


class SpectralNormalization(WeightRuleIntervention):
    """Limits the largest singular value of each hidden matrix after each step.

    See `lit_gfs.plasticity.spectral_limit.SpectralLimit`. PyTorch's parametrization divides the weight by its
    largest singular value in every forward pass, and the gradient goes through the division. Here the weight
    itself is scaled, and only if it exceeds the limit. So names of layers, checkpoints and other
    interventions stay as they are, and the forward pass costs nothing more.

    It writes below ``intervention/<name>/``: ``limited_layers``, the share of matrices that were scaled in a
    step; ``singular_value``, the mean of their largest singular values before.

    Args:
        limit: Largest singular value.
        iterations: Power iterations in a step.
        first_layer: Whether layers that read no other layer are limited too.
        last_layer: Whether layers that no other layer reads are limited too.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, the module has no such matrix, or a position is left out
            and the module has no ``example_input_array``.

    Example::

        trainer = Trainer(callbacks=[SpectralNormalization(limit=2.0)])
    """

    def __init__(
        self,
        limit: float = 1.0,
        iterations: int = 1,
        first_layer: bool = False,
        last_layer: bool = False,
        name: str = "spectral_normalization",
    ) -> None:
        self.limit = limit
        self.iterations = iterations
        super().__init__(name, first_layer, last_layer)

    @override
    def make_rule(self) -> SpectralLimit:
        return SpectralLimit(self.limit, self.iterations)
