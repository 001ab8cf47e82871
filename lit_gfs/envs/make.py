"""From an id to an environment."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from lit_gfs.envs.base import BatchedEnv
from lit_gfs.errors import UserError, nearest


def make_env(env_id: str, num_envs: int = 1, *, seed: int | None = None, **options: Any) -> BatchedEnv:
    """Make environments of one kind that are stepped together.

    Args:
        env_id: A gymnasium id such as ``CartPole-v1`` (or ``module:id``, with the module that registers it),
            ``ALE/<Game>-v5``, ``MinAtar/<Game>-v1`` or ``dm_control/<domain>-<task>-v0``.
        num_envs: How many there are.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        options: Options of the suite: those of `lit_gfs.envs.atari.AtariEnv`,
            `lit_gfs.envs.minatar.MinAtarEnv` or `lit_gfs.envs.dm_control.DMControlEnv`, or arguments of the
            gymnasium environment. With ``render=True``, ``pixels`` ``(num_envs, height, width, 3)`` uint8
            come with every observation.

    Returns:
        A TorchRL environment on the CPU, ``batch_size`` ``[num_envs]``; `lit_gfs.envs.base.BatchedEnv` says
        what it keeps and when it begins new episodes.

    Raises:
        UserError: If the id or an option is unknown, or the environment cannot be served.
    """
    if num_envs < 1:
        raise UserError(f"num_envs is {num_envs}; expected a whole number of at least 1")
    # A suite is imported only when it is asked for.
    if env_id.startswith("ALE/"):
        from lit_gfs.envs.atari import AtariEnv, atari_games

        _require_known(env_id, atari_games())
        _require_options(env_id, options, _keywords(AtariEnv))
        return _make(AtariEnv, env_id, num_envs, seed, options)
    if env_id.startswith("MinAtar/"):
        from lit_gfs.envs.minatar import minatar_games

        games = minatar_games()
        _require_known(env_id, games)
        _require_options(env_id, options, _keywords(games[env_id]))
        return _make(games[env_id], env_id, num_envs, seed, options)
    if env_id.startswith("dm_control/"):
        from lit_gfs.envs.dm_control import DMControlEnv, dm_control_tasks

        _require_known(env_id, dm_control_tasks())
        _require_options(env_id, options, _keywords(DMControlEnv))
        return _make(DMControlEnv, env_id, num_envs, seed, options)
    from lit_gfs.envs import gymnasium as suite

    if not suite.is_registered(env_id):
        _require_known(env_id, _all_ids())
    accepted = suite.gymnasium_options(env_id)
    if accepted is not None:
        _require_options(env_id, options, ["render", *accepted])
    if suite.is_natively_batched(env_id):
        from lit_gfs.envs.cartpole import CartPoleEnv

        return _make(CartPoleEnv, env_id, num_envs, seed, options)
    return _make(suite.GymnasiumEnv, env_id, num_envs, seed, options)


def complete_options(env_id: str, options: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of the options that were not chosen, where the suite is ours.

    Args:
        env_id: As in `make_env`.
        options: Those that were chosen.

    Returns:
        All options of Atari, MinAtar and dm_control; with gymnasium's own environments, those that were
        chosen.
    """
    suite: type[BatchedEnv]
    if env_id.startswith("ALE/"):
        from lit_gfs.envs.atari import AtariEnv as suite
    elif env_id.startswith("MinAtar/"):
        from lit_gfs.envs.minatar import MinAtarEnv as suite
    elif env_id.startswith("dm_control/"):
        from lit_gfs.envs.dm_control import DMControlEnv as suite
    else:
        return options
    parameters = inspect.signature(suite.__init__).parameters
    defaults = {name: parameters[name].default for name in _keywords(suite) if name != "render"}
    return {**defaults, **options}


def _make(
    suite: type[Any], env_id: str, num_envs: int, seed: int | None, options: dict[str, Any]
) -> BatchedEnv:
    limit = options.get("max_episode_steps")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise UserError(f"max_episode_steps is {limit!r}; expected a whole number of at least 1")
    chosen = {name: value for name, value in options.items() if name != "render"}
    try:
        return suite(env_id, num_envs, seed=seed, **options)
    except (TypeError, ValueError, OverflowError, LookupError, AttributeError) as error:
        if not chosen:
            raise
        raise UserError(f"{env_id!r} does not take env_options {chosen}: {error}") from error


def _all_ids() -> list[str]:
    from lit_gfs.envs.atari import atari_games
    from lit_gfs.envs.dm_control import dm_control_tasks
    from lit_gfs.envs.gymnasium import gymnasium_ids
    from lit_gfs.envs.minatar import minatar_games

    return [*gymnasium_ids(), *atari_games(), *minatar_games(), *dm_control_tasks()]


def _require_known(env_id: str, known: Iterable[str]) -> None:
    if env_id not in known:
        raise UserError(
            f"unknown environment {env_id!r}; expected a gymnasium id, 'ALE/<Game>-v5', "
            f"'MinAtar/<Game>-v1' or 'dm_control/<domain>-<task>-v0'{nearest(env_id, known)}"
        )


def _keywords(suite: type[BatchedEnv]) -> list[str]:
    parameters = inspect.signature(suite.__init__).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name != "seed"]


def _require_options(env_id: str, options: dict[str, Any], accepted: list[str]) -> None:
    for name in options:
        if name not in accepted:
            raise UserError(
                f"{env_id!r} has no option {name!r}; expected one of {', '.join(accepted)}"
                f"{nearest(name, accepted)}"
            )
