"""Weight initialization: functions that initialize a module before training."""

from lit_gfs.init.path_sensitive import Branching, PathReport, path_sensitive_
from lit_gfs.init.paths import path_shares
from lit_gfs.networks.orthogonal import orthogonal_

__all__ = ["Branching", "PathReport", "orthogonal_", "path_sensitive_", "path_shares"]
