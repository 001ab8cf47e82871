"""Initialization strategies: functions of a module, applied before training."""

from lit_gfs.init.orthogonal import orthogonal_

__all__ = ["orthogonal_"]
