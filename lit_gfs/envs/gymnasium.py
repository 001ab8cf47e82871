"""Gymnasium's environments, and those that a user registers with it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray
from torchrl.data import Unbounded

from lit_gfs.envs.base import Misconduct
from lit_gfs.envs.serial import SerialEnv
from lit_gfs.envs.spaces import ImageAxes, read_action, read_observation
from lit_gfs.errors import UserError, in_one_line, nearest
from lit_gfs.utils.trust import trusted_packages

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
# Pictures are drawn off screen: there is no window system to look for, or to complain about.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

_CHOSEN_HERE = {"num_envs", "render_mode", "self"}
"""Arguments of environments that are not a user's options."""

_OURS = ("image_axes", "observation_key")
"""Options of `GymnasiumEnv` itself."""


def gymnasium_ids() -> list[str]:
    """List the ids in gymnasium's registry, without those of other suites."""
    return [env_id for env_id in gymnasium.registry if not env_id.startswith("ALE/")]


def is_registered(env_id: str) -> bool:
    """Say whether gymnasium knows an id, once those who may register it have done so.

    Of ``module:id`` that is the module, of an unknown id every package that the user trusts: when it is
    imported, by an entry point ``gymnasium.envs``, or by a function ``register_envs`` in it or in its module
    ``gym``.

    Raises:
        UserError: If a module cannot be imported.
    """
    module, _, name = env_id.rpartition(":")
    missing = ""
    for package in [module] if module else trusted_packages():
        if module or name not in gymnasium.registry:
            try:
                _register_from(package, name)
            except ImportError as error:
                missing = f"{package!r} cannot be imported, for {env_id!r}: {error}"
                if module:
                    raise UserError(missing) from error
    if missing and name not in gymnasium.registry:
        raise UserError(f"unknown environment {env_id!r}{nearest(env_id, gymnasium_ids())}; {missing}")
    return name in gymnasium.registry


def _register_from(package: str, name: str) -> None:
    """Import a package, and have it register its environments until an id is known."""
    for register in _registrations(package):
        if name in gymnasium.registry:
            return
        with quietly():
            register()


def _registrations(package: str) -> Iterator[Callable[[], Any]]:
    """Yield what registers a package's environments, and imports what that needs."""
    imported = importlib.import_module(package)
    for entry in importlib.metadata.entry_points(group="gymnasium.envs"):
        if entry.module == package or entry.module.startswith(f"{package}."):
            yield entry.load()
    modules = [imported]
    if hasattr(imported, "__path__") and importlib.util.find_spec(f"{package}.gym") is not None:
        modules.append(importlib.import_module(f"{package}.gym"))
    for module in modules:
        if callable(register := getattr(module, "register_envs", None)):
            yield register


def gymnasium_options(env_id: str) -> list[str] | None:
    """List what ``make_env`` may pass on to an environment; ``None`` if it takes anything."""
    spec = gymnasium.spec(env_id.rpartition(":")[2])
    try:
        entry = spec.entry_point
        creator: Any = entry if callable(entry) else load_env_creator(str(entry))
    except (gymnasium.error.Error, ImportError) as error:
        raise _unavailable(env_id, error) from error
    parameters = inspect.signature(creator).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    ours = [] if is_natively_batched(env_id) else list(_OURS)
    return ["max_episode_steps", *ours, *(name for name in parameters if name not in _CHOSEN_HERE)]


def is_natively_batched(env_id: str) -> bool:
    """Say whether `lit_gfs.envs.cartpole.CartPoleEnv` serves an id."""
    entry = gymnasium.spec(env_id.rpartition(":")[2]).vector_entry_point
    return entry == "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv"


class GymnasiumEnv(SerialEnv):
    """Copies of one of gymnasium's environments, each seeded on its own.

    `lit_gfs.envs.spaces` says what becomes of observations and actions: all of gymnasium's spaces of a fixed
    size can be observed, and acted in are Discrete, MultiDiscrete, MultiBinary and boxes of floats. Stacks of
    frames are handed on, and replayed, as they come.

    Args:
        env_id: An id in gymnasium's registry, or ``module:id`` with the module that registers it.
        num_envs: Number of copies.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels``, ``(num_envs, height, width, 3)``.
        image_axes: Axes of images, ``hwc``, ``chw`` or ``hw``, or ``none`` where arrays are no images;
            ``None`` finds it out, where that is clear.
        observation_key: The entry of a dictionary that is the observation; ``None`` takes them all.
        options: Arguments of the environment, and ``max_episode_steps``.

    Raises:
        UserError: If the environment cannot be made or rendered, or has spaces that cannot be served.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        render: bool = False,
        image_axes: ImageAxes | None = None,
        observation_key: str | None = None,
        **options: Any,
    ) -> None:
        if render:
            options["render_mode"] = "rgb_array"
        try:
            with quietly():
                simulators: list[Any] = [
                    gymnasium.make(env_id, disable_env_checker=True, **options) for _ in range(num_envs)
                ]
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            raise _unavailable(env_id, error) from error
        observed = read_observation(env_id, simulators[0].observation_space, image_axes, observation_key)
        action = read_action(env_id, simulators[0].action_space, num_envs)
        picture_shape = _picture_shape(env_id, simulators[0]) if render else None
        spec = Unbounded((num_envs, *observed.shape), dtype=observed.dtype)
        super().__init__(env_id, num_envs, spec, action.spec, 1, seed, picture_shape)
        self.action_bounds = action.bounds
        self._simulators = simulators
        self._write = observed.write
        self._read = action.read

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated."""
        return getattr(self._simulators[0].spec, "max_episode_steps", None)

    @property
    def is_repeatable(self) -> bool:
        """Whether seeds and actions decide what the simulators do: what their registration says."""
        return not getattr(self._simulators[0].spec, "nondeterministic", False)

    def _step_one(self, index: int, action: Any, observation: NDArray[Any]) -> tuple[float, bool, bool]:
        try:
            shown, reward, terminated, truncated, _ = self._simulators[index].step(self._read(action))
        except (ValueError, TypeError) as error:
            _explain(error, "step returns five values (observation, reward, terminated, truncated, info)")
            raise
        self._write(shown, observation)
        if type(reward) is not float:
            reward = self._number(reward, index)
        return reward, bool(terminated), bool(truncated)

    def _number(self, reward: Any, index: int) -> float:
        """Take a reward that is a number of another type, or an array of one."""
        values = np.asarray(reward)
        if values.size == 1 and values.dtype.kind in "biuf":
            return float(values.item())
        step = self._episodes.lengths[index] + 1
        raise Misconduct(
            f"gave a reward of {' '.join(str(reward).split())} in step {step:,} of its episode (expected a "
            "number)"
        )

    def _restart_one(self, index: int, seed: int | None, observation: NDArray[Any]) -> None:
        try:
            shown, _ = self._simulators[index].reset(seed=seed)
        except (ValueError, TypeError) as error:
            _explain(error, "reset returns two values (observation, info)")
            raise
        self._write(shown, observation)

    def _render_one(self, index: int) -> NDArray[np.uint8]:
        return self._simulators[index].render()

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Release the simulators."""
        for simulator in self._simulators:
            simulator.close()
        super().close(raise_if_closed=raise_if_closed)


def _picture_shape(env_id: str, simulator: Any) -> tuple[int, ...]:
    try:
        simulator.reset()
        return np.shape(simulator.render())
    except Exception as error:
        raise UserError(f"{env_id!r} cannot be rendered: {_first_line(error)}") from error


def _explain(error: Exception, expected: str) -> None:
    """Say which values gymnasium expects of a function, if the error is that others came."""
    if "unpack" in str(error):
        raise Misconduct(f"raised {in_one_line(error)}; gymnasium's {expected}") from error


def _unavailable(env_id: str, error: Exception) -> UserError:
    return UserError(f"{env_id!r} cannot be made: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def quietly() -> Iterator[None]:
    """Drop what gymnasium says, once for each simulator, about an id that has a newer version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
