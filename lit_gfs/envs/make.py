"""Makes environments from their ids."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lit_gfs.envs.auto_reset import AutoResetEnv
from lit_gfs.envs.suites import all_ids, find_suite, has_prefix, id_forms
from lit_gfs.errors import UserError, nearest, require_positive


def make_env(env_id: str, num_envs: int = 1, *, seed: int | None = None, **options: Any) -> AutoResetEnv:
    """Make environments of one kind that are stepped together.

    Args:
        env_id: A gymnasium id such as ``CartPole-v1`` (or ``module:id``, with the module that registers it),
            ``ALE/<Game>-v5``, ``MinAtar/<Game>-v1``, ``dm_control/<domain>-<task>-v0``, or ``tensor/<id>``
            for the same environment in tensors.
        num_envs: Number of environments.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        options: Options of the suite: those of `lit_gfs.envs.atari.AtariEnv`,
            `lit_gfs.envs.minatar.MinAtarEnv` or `lit_gfs.envs.dm_control.DMControlEnv`, or arguments of the
            gymnasium environment. With ``render=True``, ``pixels`` ``(num_envs, height, width, 3)`` uint8
            come with every observation.

    Returns:
        A TorchRL environment on the CPU, ``batch_size`` ``[num_envs]``; only ``tensor/<id>`` can go to
        another device, with ``to``. `lit_gfs.envs.auto_reset.AutoResetEnv` describes its entries and its
        resets.

    Raises:
        UserError: If the id or an option is unknown, or the environment cannot be served.
    """
    require_positive(num_envs=num_envs)
    suite = find_suite(env_id)
    if not suite.has(env_id):
        raise _unknown(env_id, suite.ids() if has_prefix(env_id) else all_ids())
    _require_options(env_id, options, suite.options(env_id))
    return _make(suite.env_class(env_id), env_id, num_envs, seed, options)


def complete_options(env_id: str, options: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of the options that were not chosen.

    Args:
        env_id: A known id, as in `make_env`.
        options: The options that were chosen.

    Returns:
        All options of Atari, MinAtar and dm_control; for gymnasium's own environments, only those that were
        chosen.
    """
    return {**find_suite(env_id).default_options(env_id), **options}


def _make(
    env_class: type[Any], env_id: str, num_envs: int, seed: int | None, options: dict[str, Any]
) -> AutoResetEnv:
    limit = options.get("max_episode_steps")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise UserError(f"max_episode_steps is {limit!r}; expected a whole number of at least 1")
    chosen = {name: value for name, value in options.items() if name != "render"}
    try:
        return env_class(env_id, num_envs, seed=seed, **options)
    except (TypeError, ValueError, OverflowError, LookupError, AttributeError) as error:
        if not chosen:
            raise
        raise UserError(f"{env_id!r} does not take env_options {chosen}: {error}") from error


def _unknown(env_id: str, known: Collection[str]) -> UserError:
    return UserError(f"unknown environment {env_id!r}; expected {id_forms()}{nearest(env_id, known)}")


def _require_options(env_id: str, options: dict[str, Any], accepted: list[str] | None) -> None:
    for name in options:
        if accepted is not None and name not in accepted:
            raise UserError(
                f"{env_id!r} has no option {name!r}; expected one of {', '.join(accepted)}"
                f"{nearest(name, accepted)}"
            )
