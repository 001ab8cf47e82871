"""Optimizers that other libraries lack, or lack in a resumable form."""

from lit_gfs.optim.kron import Kron

__all__ = ["Kron"]
