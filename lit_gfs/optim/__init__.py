"""Optimizers that the ecosystem's libraries lack."""

from lit_gfs.optim.kron import Kron

__all__ = ["Kron"]
