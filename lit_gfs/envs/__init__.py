"""Environments: TorchRL environments that each step a batch of simulators."""

from __future__ import annotations

from lit_gfs.envs.make import make_env
from lit_gfs.envs.spec import EnvSpec

__all__ = ["EnvSpec", "make_env"]
