"""How a run is called by the callbacks that change how its network learns."""

from __future__ import annotations

from collections.abc import Iterable

METHOD_NAMES = {
    "path_init": "init",
    "layer_rates": "rates",
    "grama": "grama",
    "isotropic_features": "isotropic",
    "churn_penalty": "churn",
    "feature_regularization": "pfo",
    "l2_init": "l2init",
    "parseval": "parseval",
    "temporal_clipping": "clip",
    "adaptive_gradient_clipping": "agc",
    "gradient_normalization": "norm",
    "update_normalization": "even",
    "update_clipping": "update",
    "pull_to_init": "pull",
    "shrink_and_perturb": "shrink",
    "static_sparsity": "sparse",
    "weight_clipping": "wclip",
    "spectral_normalization": "spectral",
    "weight_projection": "nap",
    "redo": "redo",
    "layer_resets": "resets",
    "adam_resets": "adam",
}
"""Short names, for names of runs, of the callbacks that change how a network learns."""


def method_name(keys: Iterable[str]) -> str:
    """Name what stabilizes a run by the keys of its callbacks, such as ``init-clip``; else ``baseline``."""
    return "-".join(METHOD_NAMES[key] for key in keys if key in METHOD_NAMES) or "baseline"
