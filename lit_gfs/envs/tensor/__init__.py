"""Environments that are tensors, and so live on the device of the agent: on a GPU, no step leaves it."""

from __future__ import annotations

from lit_gfs.envs.tensor.env import TensorEnv

__all__ = ["TensorEnv"]
