"""Environments in gymnasium's registry, its own and those of users."""

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
from typing_extensions import override

from lit_gfs.envs.activity import Misconduct
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.envs.serial import SerialEnv
from lit_gfs.envs.spaces import ImageAxes, read_action, read_observation
from lit_gfs.envs.suites import Suite, has_prefix
from lit_gfs.errors import UserError, in_one_line, nearest
from lit_gfs.utils.trust import trusted_packages

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
# Pictures are drawn off screen, so SDL need not look for a window system, or complain about it.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

_CHOSEN_HERE = {"num_envs", "render_mode", "self"}
"""Arguments of environments that users cannot set as options."""

_OURS = ("image_axes", "observation_key")
"""Options of `GymnasiumEnv` itself."""


def gymnasium_ids() -> list[str]:
    """List the ids in gymnasium's registry, without those of other suites."""
    return [env_id for env_id in gymnasium.registry if not has_prefix(env_id)]


def is_registered(env_id: str) -> bool:
    """Say whether gymnasium knows an id, after letting packages register it.

    For ``module:id`` this is the module, for an unknown id every package that the user trusts. A package
    registers environments when it is imported, by an entry point ``gymnasium.envs``, or by a function
    ``register_envs`` in it or in its module ``gym``.

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
    """Import a package, and let it register its environments until an id is known."""
    for register in _registrations(package):
        if name in gymnasium.registry:
            return
        with quietly():
            register()


def _registrations(package: str) -> Iterator[Callable[[], Any]]:
    """Import a package, and yield the functions that register its environments."""
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
    """List the options that `lit_gfs.envs.make_env` takes for an environment; ``None`` if it takes any."""
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
    return ["render", "max_episode_steps", *ours, *(name for name in parameters if name not in _CHOSEN_HERE)]


def is_natively_batched(env_id: str) -> bool:
    """Say whether `lit_gfs.envs.cartpole.CartPoleEnv` serves an id."""
    entry = gymnasium.spec(env_id.rpartition(":")[2]).vector_entry_point
    return entry == "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv"


class GymnasiumEnv(SerialEnv):
    """Copies of one of gymnasium's environments, each seeded on its own.

    `lit_gfs.envs.spaces` converts observations and actions. Observations may be of all gymnasium spaces of a
    fixed size; actions of Discrete, MultiDiscrete, MultiBinary and boxes of floats. Stacks of frames are not
    recognized: replay stores them whole.

    Args:
        env_id: An id in gymnasium's registry, or ``module:id`` with the module that registers it.
        num_envs: Number of copies.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels``, ``(num_envs, height, width, 3)``.
        image_axes: Axes of images, ``hwc``, ``chw`` or ``hw``, or ``none`` where arrays are no images;
            ``None`` infers the axes from the shape, where that is clear.
        observation_key: The entry of a dictionary to observe; ``None`` observes all of them.
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
        observations = {"observation": Unbounded((num_envs, *observed.shape), dtype=observed.dtype)}
        super().__init__(env_id, num_envs, observations, action.spec, 1, seed, picture_shape)
        self.action_bounds = action.bounds
        self._simulators = simulators
        self.shown_space = simulators[0].observation_space
        """The space of observations as gymnasium shows them."""
        self.write_observation = observed.write
        """Writes one of them into a row of ``observation``; raises `Misconduct` if it is not of the space."""
        self.read_action = action.read
        """Converts a row of ``action`` into an action of gymnasium."""

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated."""
        return getattr(self._simulators[0].spec, "max_episode_steps", None)

    @property
    def is_repeatable(self) -> bool:
        """Whether the simulators repeat themselves: true unless registered as ``nondeterministic``."""
        return not getattr(self._simulators[0].spec, "nondeterministic", False)

    def _step_one(self, index: int, action: Any, observation: NDArray[Any]) -> tuple[float, bool, bool]:
        try:
            observed, reward, terminated, truncated, _ = self._simulators[index].step(
                self.read_action(action)
            )
        except (ValueError, TypeError) as error:
            _explain(error, "step returns five values (observation, reward, terminated, truncated, info)")
            raise
        self.write_observation(observed, observation)
        if type(reward) is not float:
            reward = self._number(reward, index)
        return reward, bool(terminated), bool(truncated)

    def _number(self, reward: Any, index: int) -> float:
        """Convert a reward that is a number of another type, or an array of one number."""
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
            observed, _ = self._simulators[index].reset(seed=seed)
        except (ValueError, TypeError) as error:
            _explain(error, "reset returns two values (observation, info)")
            raise
        self.write_observation(observed, observation)

    def _render_one(self, index: int) -> NDArray[np.uint8]:
        return self._simulators[index].render()

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Release the simulators."""
        for simulator in self._simulators:
            simulator.close()
        super().close(raise_if_closed=raise_if_closed)


def _env_class(env_id: str) -> type[BatchedEnv]:
    if not is_natively_batched(env_id):
        return GymnasiumEnv
    from lit_gfs.envs.cartpole import CartPoleEnv  # imports this module

    return CartPoleEnv


class _GymnasiumSuite(Suite):
    """A suite with the ids and options of gymnasium's registry, which may grow."""

    @override
    def has(self, env_id: str) -> bool:
        return is_registered(env_id)

    @override
    def options(self, env_id: str) -> list[str] | None:
        return gymnasium_options(env_id)

    @override
    def default_options(self, env_id: str) -> dict[str, Any]:
        return {}


SUITE = _GymnasiumSuite(ids=gymnasium_ids, env_class=_env_class)


def _picture_shape(env_id: str, simulator: Any) -> tuple[int, ...]:
    try:
        simulator.reset()
        return np.shape(simulator.render())
    except Exception as error:
        raise UserError(f"{env_id!r} cannot be rendered: {_first_line(error)}") from error


def _explain(error: Exception, expected: str) -> None:
    """If the error is a wrong number of return values, raise one that says what gymnasium expects."""
    if "unpack" in str(error):
        raise Misconduct(f"raised {in_one_line(error)}; gymnasium's {expected}") from error


def _unavailable(env_id: str, error: Exception) -> UserError:
    return UserError(f"{env_id!r} cannot be made: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress gymnasium's warnings, such as one per simulator about an id that has a newer version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
