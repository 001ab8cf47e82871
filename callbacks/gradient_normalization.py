"""Callback for layer-wise gradient normalization."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lit_gfs.callbacks.gradient_intervention import GradientIntervention
from lit_gfs.gradients import GradientNormalizer
from lit_gfs.gradients.normalization import Reference


class GradientNormalization(GradientIntervention):
    """Brings the gradient norms n_l of all layers l closer together: g_l <- g_l (r / n_l)^strength.

    See `lit_gfs.gradients.GradientNormalizer` for the algorithm. Put it after `TemporalGradientClipping`, so
    the reference r does not include spikes.

    It writes below ``intervention/<name>/``: ``scale``, ``smallest_scale`` and ``largest_scale``, the mean,
    the smallest and the largest of the layers' mean factors.

    Args:
        strength: From 0 (off) to 1 (all layers get gradients of norm r).
        reference: The reference norm r: the geometric mean over the layers, averaged over time (``running``)
            or not (``instant``); 1 (``unit``); or the norm of the layer's parameters (``weight``).
        decay: Decay of the running reference, per optimizer step.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, or the module has no layers.
        MisconfigurationException: If the Trainer clips gradients too.

    Example::

        trainer = Trainer(callbacks=[GradientNormalization(strength=1.0)])
    """

    def __init__(
        self,
        strength: float = 0.5,
        reference: Reference = "running",
        decay: float = 0.99,
        name: str = "gradient_normalization",
    ) -> None:
        super().__init__(name)
        self.strength = strength
        self.reference: Reference = reference
        self.decay = decay
        self.make_algorithm()  # checks the arguments

    @override
    def make_algorithm(self) -> GradientNormalizer:
        return GradientNormalizer(self.strength, self.reference, self.decay)

    @override
    def scalars(self, layers: list[str], scales: Tensor, clipped: Tensor) -> dict[str, float]:
        return {
            "scale": float(scales.mean()),
            "smallest_scale": float(scales.min()),
            "largest_scale": float(scales.max()),
        }
