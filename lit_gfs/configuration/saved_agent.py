"""The agent that a run's ``config.yaml`` describes, built without its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonargparse
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import LightningDataModule, LightningModule

import lit_gfs.agents
import lit_gfs.configuration.config_trust
import lit_gfs.datamodules  # noqa: F401 - makes class names known to the parser
from lit_gfs.configuration.config_checks import check_values
from lit_gfs.configuration.former_options import with_present_options
from lit_gfs.configuration.instantiation_errors import foreseen_in, refusal_in
from lit_gfs.configuration.parser_errors import one_line
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.auto_reset import AutoResetEnv
from lit_gfs.errors import UserError
from lit_gfs.utils.formats import relative_path
from lit_gfs.utils.yaml_files import read_yaml


def build_saved_agent(config: Path) -> tuple[LightningModule, AutoResetEnv]:
    """Build the agent of a run with new weights, and one of its environments.

    The datamodule is not built: it would ask for the memory of its replay.

    Args:
        config: The ``config.yaml`` of the run.

    Returns:
        The agent, and the environment that its spaces were read from.

    Raises:
        UserError: If the file is no configuration of an agent and its environment, or names something that is
            not trusted; see `lit_gfs.configuration.config_trust`.
    """
    shown = relative_path(str(config))
    content = with_present_options(read_yaml(config))
    groups = content if isinstance(content, dict) else {}
    parts = {name: groups[name] for name in ("model", "data") if groups.get(name) is not None}
    if len(parts) < 2:
        raise UserError(f"{shown!r} has no model and data; expected the config.yaml of a run")
    parser = jsonargparse.ArgumentParser(prog="lit_gfs", exit_on_error=False)
    # The environment gives the spaces.
    parser.add_subclass_arguments(
        LightningModule, "model", skip={"env_spec"}, fail_untyped=False, required=True
    )
    parser.add_subclass_arguments(
        LightningDataModule, "data", instantiate=False, fail_untyped=False, required=True
    )
    try:
        parsed = parser.parse_object(parts)
    except (ArgumentError, UserError) as error:
        raise UserError(f"{shown!r}: {one_line(str(error), parser)}") from None
    check_values(parsed)
    arguments = parsed.data.get("init_args", Namespace())
    if (env_id := arguments.get("env_id")) is None:
        raise UserError(f"{shown!r} names no environment (data.env_id); expected one to act in")
    env = make_env(env_id, 1, **(arguments.get("env_options") or {}))
    spec = EnvSpec.from_env(env)

    def build(cls: type[LightningModule], *positional: Any, **options: Any) -> LightningModule:
        return cls(*positional, env_spec=spec, **options)

    try:
        built = parser.instantiate(parsed, instantiators=[(build, LightningModule, True)])
    except Exception as error:
        raise foreseen_in(error) or refusal_in(error) or error.__cause__ or error  # noqa: B904
    return built.model, env
