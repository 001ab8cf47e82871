"""lit_gfs: a Lightning framework in which deep-RL networks stay trainable as they grow.

Three names of it need PyTorch, and are imported when they are first used: `make_trainer`, `load_policy` and
`trust`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_gfs.configuration.config_trust import trust
    from lit_gfs.policy import load_policy
    from lit_gfs.trainer import make_trainer

__version__ = "0.1.0"
__all__ = ["load_policy", "make_trainer", "trust"]

_PLACES = {
    "load_policy": "lit_gfs.policy",
    "make_trainer": "lit_gfs.trainer",
    "trust": "lit_gfs.configuration.config_trust",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
