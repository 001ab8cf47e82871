"""Interventions and monitors: independent Lightning callbacks, one per file."""

from __future__ import annotations

from lit_gfs.callbacks.adam_resets import AdamResets
from lit_gfs.callbacks.adaptive_gradient_clipping import AdaptiveGradientClipping
from lit_gfs.callbacks.auxiliary_loss import AuxiliaryLoss
from lit_gfs.callbacks.churn_penalty import ChurnPenalty
from lit_gfs.callbacks.curvature import CurvatureMonitor
from lit_gfs.callbacks.diagnosis import Diagnosis
from lit_gfs.callbacks.ema_weights import EMAWeights
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

__all__ = [
    "AdamResets",
    "AdaptiveGradientClipping",
    "AuxiliaryLoss",
    "ChurnPenalty",
    "CurvatureMonitor",
    "Diagnosis",
    "EMAWeights",
    "FeatureRegularization",
    "GradientFlowMonitor",
    "GradientNormalization",
    "IsotropicFeatures",
    "L2Init",
    "LayerResets",
    "LayerwiseLearningRates",
    "NaNGuard",
    "ParsevalRegularization",
    "PathSensitiveInit",
    "PullToInit",
    "ReDo",
    "ReGraMa",
    "RepresentationMonitor",
    "ShrinkAndPerturb",
    "SpectralNormalization",
    "StaticSparsity",
    "TemporalGradientClipping",
    "UpdateClipping",
    "UpdateNormalization",
    "WeightClipping",
    "WeightMonitor",
    "WeightProjection",
]
