"""The former place of `announce_objective_shift`, which programs import."""

from lit_gfs.gradients.objective_shift import announce_objective_shift

__all__ = ["announce_objective_shift"]
