"""Callback for layer-wise gradient normalization."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from typing_extensions import override

from lit_gfs.callbacks.gradient_intervention import GradientIntervention
from lit_gfs.errors import require_one_of, require_unused
from lit_gfs.gradients import GradientNormalizer, SpectralNormalizer
from lit_gfs.gradients.normalization import Reference, SpectralReference

REFERENCES = (*get_args(Reference), *get_args(SpectralReference))


class GradientNormalization(GradientIntervention):
    """Evens out gradients before the optimizer: the norms of all layers, or the spectrum of each layer.

    With a reference norm r, the norms n_l of all layers l come closer together: g_l <- g_l (r /
    n_l)^strength; see `lit_gfs.gradients.GradientNormalizer`. With ``spectral``, all singular values of a
    hidden matrix's gradient become 1; see `lit_gfs.gradients.SpectralNormalizer`. First layers, heads and
    vectors then keep their gradients. Put it after `TemporalGradientClipping`, so the reference r does not
    include spikes.

    It writes below ``intervention/<name>/``: ``scale``, ``smallest_scale`` and ``largest_scale``, the mean,
    the smallest and the largest of the layers' mean factors on the norm.

    Args:
        strength: From 0 (off) to 1: all layers get gradients of norm r, or of singular values 1.
        reference: The reference norm r: the geometric mean over the layers, averaged over time (``running``)
            or not (``instant``); 1 (``unit``); or the norm of the layer's parameters (``weight``).
            ``spectral`` evens out the spectrum of hidden matrices. ``spectral_norm`` only scales their
            largest singular value to 1, at a small part of the price.
        decay: Decay of the running reference, per optimizer step (``running``).
        block: Rows of a matrix that are orthogonalized together; ``null`` for all (``spectral``). The price
            grows with it.
        momentum: Decay of a running mean of the gradients, whose spectrum is evened out in the place of each
            step's own; 0 takes each gradient alone (``spectral``, ``spectral_norm``).
        lift: Factor on the smallest singular values, relative to the gradient's size, at least 1; ``null``
            makes all singular values 1 (``spectral``). The price grows with it.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, or the module has no layers; if ``block``, ``momentum`` or
            ``lift`` is set and has no effect with this reference.
        MisconfigurationException: If the Trainer clips gradients too.

    Example::

        trainer = Trainer(callbacks=[GradientNormalization(strength=1.0, reference="spectral")])
    """

    def __init__(
        self,
        strength: float = 0.5,
        reference: Literal["running", "instant", "unit", "weight", "spectral", "spectral_norm"] = "running",
        decay: float = 0.99,
        block: int | None = None,
        momentum: float = 0.0,
        lift: float | None = None,
        name: str = "gradient_normalization",
    ) -> None:
        super().__init__(name)
        require_one_of(REFERENCES, reference=reference)
        if reference not in get_args(SpectralReference):
            why = f"it has no effect with reference {reference!r}; leave it out, or take reference 'spectral'"
            require_unused(why, block=block, momentum=momentum, lift=lift)
        self.strength = strength
        self.reference = reference
        self.decay = decay
        self.block = block
        self.momentum = momentum
        self.lift = lift
        self.make_algorithm()  # checks the arguments

    @override
    def make_algorithm(self) -> GradientNormalizer | SpectralNormalizer:
        if self.reference == "spectral" or self.reference == "spectral_norm":
            return SpectralNormalizer(
                self.strength, self.reference, self.block, momentum=self.momentum, lift=self.lift
            )
        return GradientNormalizer(self.strength, self.reference, self.decay)

    @override
    def scalars(self, layers: list[str], scales: Tensor, clipped: Tensor) -> dict[str, float]:
        return {
            "scale": float(scales.mean()),
            "smallest_scale": float(scales.min()),
            "largest_scale": float(scales.max()),
        }
