"""The former place of `announce_objective_shift`, which programs import."""

from lit_gfs.steps.objective_shift import announce_objective_shift

__all__ = ["announce_objective_shift"]
