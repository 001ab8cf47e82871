"""Optimizers that other libraries lack, or lack in a resumable form."""

from lit_gfs.optim.kron import Kron
from lit_gfs.optim.muon import MuonWithAdam

__all__ = ["Kron", "MuonWithAdam"]
