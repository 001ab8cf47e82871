"""The interventions and monitors that have a key, ``gfs.<key>`` in YAML."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback

from lit_gfs.callbacks.adam_resets import AdamResets
from lit_gfs.callbacks.adaptive_gradient_clipping import AdaptiveGradientClipping
from lit_gfs.callbacks.churn_penalty import ChurnPenalty
from lit_gfs.callbacks.curvature import CurvatureMonitor
from lit_gfs.callbacks.feature_regularization import FeatureRegularization
from lit_gfs.callbacks.gradient_flow import GradientFlowMonitor
from lit_gfs.callbacks.gradient_normalization import GradientNormalization
from lit_gfs.callbacks.isotropic_features import IsotropicFeatures
from lit_gfs.callbacks.l2_init import L2Init
from lit_gfs.callbacks.layer_rates import LayerwiseLearningRates
from lit_gfs.callbacks.layer_resets import LayerResets
from lit_gfs.callbacks.nan_guard import NaNGuard
from lit_gfs.callbacks.parseval import ParsevalRegularization
from lit_gfs.callbacks.path_init import PathSensitiveInit
from lit_gfs.callbacks.pull_to_init import PullToInit
from lit_gfs.callbacks.redo import ReDo
from lit_gfs.callbacks.regrama import ReGraMa
from lit_gfs.callbacks.representation import RepresentationMonitor
from lit_gfs.callbacks.shrink_and_perturb import ShrinkAndPerturb
from lit_gfs.callbacks.spectral_normalization import SpectralNormalization
from lit_gfs.callbacks.static_sparsity import StaticSparsity
from lit_gfs.callbacks.temporal_clipping import TemporalGradientClipping
from lit_gfs.callbacks.update_clipping import UpdateClipping
from lit_gfs.callbacks.update_normalization import UpdateNormalization
from lit_gfs.callbacks.weight_clipping import WeightClipping
from lit_gfs.callbacks.weight_projection import WeightProjection
from lit_gfs.callbacks.weights import WeightMonitor

INTERVENTIONS: dict[str, type[Callback]] = {
    "gradient_flow": GradientFlowMonitor,
    "nan_guard": NaNGuard,
    "path_init": PathSensitiveInit,
    "layer_rates": LayerwiseLearningRates,
    "grama": ReGraMa,
    "isotropic_features": IsotropicFeatures,
    "churn_penalty": ChurnPenalty,
    "feature_regularization": FeatureRegularization,
    "l2_init": L2Init,
    "parseval": ParsevalRegularization,
    "temporal_clipping": TemporalGradientClipping,
    "adaptive_gradient_clipping": AdaptiveGradientClipping,
    "gradient_normalization": GradientNormalization,
    "update_normalization": UpdateNormalization,
    "update_clipping": UpdateClipping,
    "pull_to_init": PullToInit,
    "shrink_and_perturb": ShrinkAndPerturb,
    "static_sparsity": StaticSparsity,
    "weight_clipping": WeightClipping,
    "spectral_normalization": SpectralNormalization,
    "weight_projection": WeightProjection,
    "redo": ReDo,
    "layer_resets": LayerResets,
    "adam_resets": AdamResets,
    "representation": RepresentationMonitor,
    "curvature": CurvatureMonitor,
    "weights": WeightMonitor,
}
"""Named callbacks by key; they see gradients, and change weights, in this order."""

ON_BY_DEFAULT: tuple[str, ...] = ("nan_guard",)
"""Keys of the callbacks that are on unless they are switched off."""


def key_of(callback: Callback) -> str | None:
    """Return the key of a callback, also of a subclass; ``None`` if it has none."""
    return next((key for key, kind in INTERVENTIONS.items() if isinstance(callback, kind)), None)


def keys_of(callbacks: Iterable[Callback]) -> list[str]:
    """Return the keys of those callbacks that have one, each once."""
    return list(dict.fromkeys(key for each in callbacks if (key := key_of(each)) is not None))


def in_order(callbacks: Iterable[Callback]) -> list[Callback]:
    """Put the callbacks with a key first, in the order of `INTERVENTIONS`; the others keep theirs."""
    ranks = {key: rank for rank, key in enumerate(INTERVENTIONS)}
    return sorted(callbacks, key=lambda each: ranks.get(key_of(each) or "", len(ranks)))
