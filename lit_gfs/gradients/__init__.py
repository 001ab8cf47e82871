"""Layer-wise gradient clipping and normalization, independent of Lightning and of the optimizer."""

from lit_gfs.gradients.adaptive_clipping import AdaptiveClipper
from lit_gfs.gradients.clipping import PercentileClipper, TemporalClipper, ZScoreClipper
from lit_gfs.gradients.layerwise import LayerwiseScaling, ScaledGradients
from lit_gfs.gradients.normalization import GradientNormalizer, SpectralNormalizer

__all__ = [
    "AdaptiveClipper",
    "GradientNormalizer",
    "LayerwiseScaling",
    "PercentileClipper",
    "ScaledGradients",
    "SpectralNormalizer",
    "TemporalClipper",
    "ZScoreClipper",
]
