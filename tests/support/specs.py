"""Environments as networks and agents see them, without the environments."""

from __future__ import annotations

from lit_gfs.envs import EnvSpec


def discrete_spec(num_actions: int = 3, shape: tuple[int, ...] = (2,), dtype: str = "float32") -> EnvSpec:
    """Describe an environment of a few actions, by default with vectors of two numbers."""
    return EnvSpec("Counting-v0", shape, dtype, num_actions, None, None, frame_skip=1)


def continuous_spec(
    low: tuple[float, ...] = (-1.0, -1.0), high: tuple[float, ...] = (1.0, 1.0), shape: tuple[int, ...] = (3,)
) -> EnvSpec:
    """Describe an environment of bounded actions, by default two, and vectors of three numbers."""
    return EnvSpec("Point-v0", shape, "float32", None, low, high, frame_skip=1)
