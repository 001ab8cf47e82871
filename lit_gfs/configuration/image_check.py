"""Check whether a configuration for vector observations is used with images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.closing import close_env
from lit_gfs.errors import EnvironmentFault, UserError


def vectors_of(contents: Sequence[Mapping[str, Any]], spec: EnvSpec) -> str | None:
    """Find a configuration for vector observations in a run whose environment has image observations.

    The network, learning rate and length of such a configuration are chosen for vectors.

    Args:
        contents: Contents of the run's configurations.
        spec: The run's environment.

    Returns:
        The id of the environment in that configuration; ``None`` if there is none.
    """
    if not spec.is_pixels:
        return None
    for content in contents:
        env_id = _env_id(content)
        # A colon separates a module, which may be imported only for the environment of the run itself.
        if env_id not in (None, spec.env_id) and ":" not in str(env_id) and _has_vectors(str(env_id)):
            return env_id
    return None


def _env_id(content: Mapping[str, Any]) -> str | None:
    data = content.get("data")
    arguments = data.get("init_args", data) if isinstance(data, dict) else {}
    env_id = arguments.get("env_id") if isinstance(arguments, dict) else None
    return env_id if isinstance(env_id, str) else None


def _has_vectors(env_id: str) -> bool:
    try:
        env = make_env(env_id)
    except (UserError, EnvironmentFault):
        return False
    try:
        return not EnvSpec.from_env(env).is_pixels
    finally:
        close_env(env)
