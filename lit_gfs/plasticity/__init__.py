"""Changes of weights and updates after an optimizer step that keep a network trainable, without Lightning."""

from lit_gfs.plasticity.projection import NormProjection
from lit_gfs.plasticity.pull_to_init import PullToInit
from lit_gfs.plasticity.shrink_and_perturb import ShrinkAndPerturb
from lit_gfs.plasticity.spectral_limit import SpectralLimit
from lit_gfs.plasticity.static_sparsity import StaticSparsity, erdos_renyi_densities
from lit_gfs.plasticity.update_clipping import UpdateClipping
from lit_gfs.plasticity.update_normalization import UpdateNormalization
from lit_gfs.plasticity.update_rule import UpdateRule
from lit_gfs.plasticity.weight_clipping import WeightClipping
from lit_gfs.plasticity.weight_rule import WeightRule

__all__ = [
    "NormProjection",
    "PullToInit",
    "ShrinkAndPerturb",
    "SpectralLimit",
    "StaticSparsity",
    "UpdateClipping",
    "UpdateNormalization",
    "UpdateRule",
    "WeightClipping",
    "WeightRule",
    "erdos_renyi_densities",
]
