"""Gradient normalization, as a callback."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lit_gfs.callbacks.gradient_intervention import GradientIntervention
from lit_gfs.gradients import GradientNormalizer
from lit_gfs.gradients.normalization import Reference


class GradientNormalization(GradientIntervention):
    """Brings the gradient norms of layers closer together: g_l <- g_l (r / n_l)^strength.

    `lit_gfs.gradients.GradientNormalizer` says how. Beside `TemporalGradientClipping` it comes second, so
    that a spike does not become part of the reference r.

    It writes, below ``intervention/<name>/``: ``scale``, ``smallest_scale`` and ``largest_scale``, the mean,
    least and largest of the layers' mean factors.

    Args:
        strength: From 0 (off) to 1 (all layers get gradients of norm r).
        reference: r: the geometric mean over the layers, averaged over time (``running``) or not
            (``instant``); 1 (``unit``); or the norm of the layer's parameters (``weight``).
        decay: Memory of the running reference, per optimizer step.
        name: Its name in tags and in the checkpoint; two of a kind need different ones.

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
