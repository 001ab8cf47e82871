"""Initialization strategies: functions of a module, applied before training."""

from lit_gfs.init.orthogonal import orthogonal_
from lit_gfs.init.path_sensitive import PathReport, path_sensitive_
from lit_gfs.init.paths import path_shares

__all__ = ["PathReport", "orthogonal_", "path_sensitive_", "path_shares"]
