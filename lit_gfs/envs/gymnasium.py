"""Gymnasium's environments, and those that a user registers with it."""

from __future__ import annotations

import importlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray
from torchrl.data import TensorSpec, Unbounded

from lit_gfs.envs.base import continuous_action, discrete_action
from lit_gfs.envs.serial import SerialEnv
from lit_gfs.errors import UserError

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
# Pictures are drawn off screen: there is no window system to look for, or to complain about.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

_CHOSEN_HERE = {"num_envs", "render_mode", "self"}
"""Arguments of environments that are not a user's options."""

_CHANNELS = (1, 3, 4)
"""Channels of an image whose last axis they are: gray, RGB, and RGB with transparency or four gray frames."""

_MOST_FRAMES = 16
"""Channels that an image may have as its first axis: the frames of a stack, but no image's height."""


def gymnasium_ids() -> list[str]:
    """List the ids in gymnasium's registry, without those of other suites."""
    return [env_id for env_id in gymnasium.registry if not env_id.startswith("ALE/")]


def is_registered(env_id: str) -> bool:
    """Say whether gymnasium knows an id; ``module:id`` imports the module first, which may register it."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"{env_id!r} names a module that cannot be imported: {error}") from error
    return name in gymnasium.registry


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
    return ["max_episode_steps", *(name for name in parameters if name not in _CHOSEN_HERE)]


def is_natively_batched(env_id: str) -> bool:
    """Say whether `lit_gfs.envs.cartpole.CartPoleEnv` serves an id."""
    entry = gymnasium.spec(env_id.rpartition(":")[2]).vector_entry_point
    return entry == "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv"


class GymnasiumEnv(SerialEnv):
    """Copies of one of gymnasium's environments, each seeded on its own.

    Observations are boxes, as float32, or a discrete one, as a one-hot vector. Actions are discrete, or a
    flat box with finite bounds.

    Images of bytes stay bytes. Those whose last axis is 1, 3 or 4 are ``(height, width, channels)`` and
    become ``(channels, height, width)``. Others have to be that already, with at most 16 channels, such as a
    stack of gray frames; they are handed on, and replayed, as they come.

    Args:
        env_id: An id in gymnasium's registry, or ``module:id`` with the module that registers it.
        num_envs: Number of copies.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels``, ``(num_envs, height, width, 3)``.
        options: Arguments of the environment, and ``max_episode_steps``.

    Raises:
        UserError: If the environment cannot be made or rendered, has spaces of another kind, or images of
            another shape.
    """

    def __init__(
        self, env_id: str, num_envs: int, *, seed: int | None = None, render: bool = False, **options: Any
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
        space, action_space = simulators[0].observation_space, simulators[0].action_space
        observation, encode = _observation(env_id, space, num_envs)
        picture_shape = _picture_shape(env_id, simulators[0]) if render else None
        action = _action(env_id, action_space, num_envs)
        super().__init__(env_id, num_envs, observation, action, 1, seed, picture_shape)
        self._simulators = simulators
        self._encode = encode
        self._first_action = int(getattr(action_space, "start", 0))

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated."""
        return getattr(self._simulators[0].spec, "max_episode_steps", None)

    @property
    def is_repeatable(self) -> bool:
        """Whether seeds and actions decide what the simulators do: what their registration says."""
        return not getattr(self._simulators[0].spec, "nondeterministic", False)

    def _step_one(self, index: int, action: Any, observation: NDArray[Any]) -> tuple[float, bool, bool]:
        if self._first_action:
            action = action + self._first_action
        shown, reward, terminated, truncated, _ = self._simulators[index].step(action)
        self._encode(shown, observation)
        return reward, terminated, truncated

    def _restart_one(self, index: int, seed: int | None, observation: NDArray[Any]) -> None:
        shown, _ = self._simulators[index].reset(seed=seed)
        self._encode(shown, observation)

    def _render_one(self, index: int) -> NDArray[np.uint8]:
        return self._simulators[index].render()

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Release the simulators."""
        for simulator in self._simulators:
            simulator.close()
        super().close(raise_if_closed=raise_if_closed)


def _observation(
    env_id: str, space: Any, num_envs: int
) -> tuple[TensorSpec, Callable[[Any, NDArray[Any]], None]]:
    """Describe observations, and give the function that writes one into its row."""
    if isinstance(space, spaces.Discrete):
        first = int(space.start)

        def one_hot(shown: Any, row: NDArray[Any]) -> None:
            row[:] = 0
            row[int(shown) - first] = 1

        return Unbounded((num_envs, int(space.n)), dtype=torch.float32), one_hot
    if not isinstance(space, spaces.Box):
        raise UserError(
            f"{env_id!r} has observations of type {type(space).__name__}; expected Box or Discrete"
        )
    if space.dtype == np.uint8 and len(space.shape) == 3:
        if _has_channels_last(env_id, space.shape):
            height, width, channels = space.shape
            return Unbounded((num_envs, channels, height, width), dtype=torch.uint8), _channels_first
        return Unbounded((num_envs, *space.shape), dtype=torch.uint8), _copy
    return Unbounded((num_envs, *(space.shape or (1,))), dtype=torch.float32), _copy


def _has_channels_last(env_id: str, shape: tuple[int, ...]) -> bool:
    """Say whether images have their channels as the last axis, or else as the first."""
    if shape[-1] in _CHANNELS:
        return True
    if shape[0] <= _MOST_FRAMES:
        return False
    raise UserError(
        f"{env_id!r} has images of shape {shape}; expected (height, width, channels) with 1, 3 or 4 "
        f"channels, or (channels, height, width) with at most {_MOST_FRAMES}"
    )


def _channels_first(shown: Any, row: NDArray[Any]) -> None:
    row[:] = shown.transpose(2, 0, 1)


def _copy(shown: Any, row: NDArray[Any]) -> None:
    row[:] = shown


def _action(env_id: str, space: Any, num_envs: int) -> TensorSpec:
    if isinstance(space, spaces.Discrete):
        return discrete_action(int(space.n), num_envs)
    if (
        isinstance(space, spaces.Box)
        and np.issubdtype(space.dtype, np.floating)
        and len(space.shape) == 1
        and np.isfinite([space.low, space.high]).all()
    ):
        return continuous_action(space.low, space.high, num_envs)
    raise UserError(f"{env_id!r} has actions {space}; expected Discrete, or a flat Box with finite bounds")


def _picture_shape(env_id: str, simulator: Any) -> tuple[int, ...]:
    try:
        simulator.reset()
        return np.shape(simulator.render())
    except Exception as error:
        raise UserError(f"{env_id!r} cannot be rendered: {_first_line(error)}") from error


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
