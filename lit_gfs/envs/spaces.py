"""Conversion of gymnasium's spaces: one array for each observation, one flat row for each action."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatten, flatten_space
from numpy.typing import NDArray
from torchrl.data import TensorSpec

from lit_gfs.envs.action_specs import continuous_action, discrete_action, multi_discrete_action
from lit_gfs.envs.activity import Misconduct
from lit_gfs.errors import UserError

ImageAxes = Literal["hwc", "chw", "hw", "none"]
"""The axes of an image in order (height, width, channels), two if it is gray; ``none`` for no image."""

_SMALLEST_GRAY = 36
"""Least height and width at which a plane of bytes counts as a gray image: Nature CNN needs as much."""

_AXES_OF: dict[int, tuple[ImageAxes, ...]] = {2: ("hw", "none"), 3: ("hwc", "chw", "none")}


class Observation(NamedTuple):
    """The conversion of observations."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    write: Callable[[Any, NDArray[Any]], None]
    """Writes an environment's observation into a row; raises `Misconduct` if it is not of the space."""


class Action(NamedTuple):
    """The conversion of actions."""

    spec: TensorSpec
    bounds: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    """Smallest and largest values ``(dim,)`` of a continuous action; infinite where there is no bound."""
    read: Callable[[Any], Any]
    """Converts one row into an action of the environment."""


# -- observations --------------------------------------------------------------------------------------------


def read_observation(
    env_id: str, space: Any, image_axes: ImageAxes | None = None, key: str | None = None
) -> Observation:
    """Return the conversion of observations from a gymnasium space.

    Images have three axes, or are a plane of bytes of at least 36 x 36. They become ``(channels, height,
    width)``. Bytes stay bytes; booleans, and bytes that are 0 or 1, become the bytes 0 and 255, which
    encoders scale to 0 and 1; other images become float32. Arrays that are not images become float32. Bytes,
    and numbers declared from 0 to 255, are scaled to [0, 1] unless they stay bytes.

    All other spaces are flattened by gymnasium: discrete ones become one-hot vectors.

    Args:
        env_id: The environment, for messages.
        space: The space of its observations.
        image_axes: The axes of an array; ``None`` infers them, see `find_axes`.
        key: The entry of a dictionary to observe; ``None`` observes all entries.

    Raises:
        UserError: If the space cannot be flattened, or has an image among other entries, if the axes of an
            image are not clear, or if an option does not fit.
    """
    if key is not None:
        if not isinstance(space, spaces.Dict) or key not in space.spaces:
            keys = list(space.spaces) if isinstance(space, spaces.Dict) else None
            raise UserError(f"observation_key is {key!r}; expected {_one_of(keys)} for {env_id!r}")
        part = read_observation(env_id, space[key], image_axes)
        return part._replace(write=lambda observed, row: part.write(observed[key], row))
    if isinstance(space, spaces.Dict) and len(space.spaces) == 1:
        return read_observation(env_id, space, image_axes, next(iter(space.spaces)))
    if isinstance(space, spaces.Box):
        return _array(space, _axes(env_id, space, image_axes))
    if image_axes is not None:
        raise UserError(
            f"image_axes is {image_axes!r}, but {env_id!r} shows no image; expected null (its observations "
            f"are of type {type(space).__name__})"
        )
    return _one_hot(space) if isinstance(space, spaces.Discrete) else _flattened(env_id, space)


def find_axes(shape: tuple[int, ...]) -> ImageAxes | None:
    """Find the channels of an image: the axis beside two of equal size, or one at most half as long as those.

    Args:
        shape: ``(height, width, channels)`` or ``(channels, height, width)``.

    Returns:
        ``hwc``, ``chw``, or ``None`` if the shape is ambiguous.
    """
    first, middle, last = shape
    if (first == middle) != (middle == last):
        return "hwc" if first == middle else "chw"
    if 2 * last <= min(first, middle):
        return "hwc"
    return "chw" if 2 * first <= min(middle, last) else None


def _axes(env_id: str, space: spaces.Box, chosen: ImageAxes | None) -> ImageAxes:
    shape, is_bytes = space.shape, space.dtype == np.uint8
    possible = _AXES_OF.get(len(shape), ("none",))
    if chosen is not None:
        if chosen not in possible:
            raise UserError(
                f"image_axes is {chosen!r}, but {env_id!r} shows arrays of shape {shape}; expected "
                f"{_one_of(possible)}"
            )
        return chosen
    if len(shape) == 3:
        found = find_axes(shape)
    elif len(shape) > 3:
        found = None if is_bytes else "none"
    else:
        found = "hw" if is_bytes and len(shape) == 2 and min(shape) >= _SMALLEST_GRAY else "none"
    if found is None:
        raise UserError(
            f"{env_id!r} shows arrays of shape {shape}, and their axes are not clear; expected "
            f"env_options.image_axes, {_one_of(possible)} (a flat vector)"
        )
    return found


def _array(space: spaces.Box, axes: ImageAxes) -> Observation:
    is_binary = space.dtype == bool or (space.dtype == np.uint8 and space.high.max(initial=0) == 1)
    is_bytes = axes != "none" and (is_binary or space.dtype == np.uint8)
    scale: Any = (np.uint8(255) if is_binary else None) if is_bytes else _scale(space)
    declared = space.shape
    order = {"hwc": (2, 0, 1), "chw": None, "hw": None, "none": None}[axes]
    if axes == "none":
        # Three axes would look like an image.
        shape = (space.low.size,) if len(declared) in (0, 3) else declared
    elif order is None:
        shape = declared if axes == "chw" else (1, *declared)
    else:
        shape = tuple(declared[axis] for axis in order)

    def write(observed: Any, row: NDArray[Any]) -> None:
        array = np.asarray(observed)
        if array.shape != declared:
            raise Misconduct(f"showed an observation of shape {array.shape}; its space has {declared}")
        if scale is not None:
            array = array * scale
        row[...] = array.reshape(shape) if order is None else array.transpose(order)

    return Observation(shape, torch.uint8 if is_bytes else torch.float32, write)


def _scale(space: spaces.Box) -> NDArray[np.float32] | None:
    """Return the factors that scale bytes to [0, 1]; ``None`` where there is nothing to scale."""
    high = space.high.astype(np.float64)
    is_byte = high > 1 if space.dtype == np.uint8 else (space.low == 0) & (high == 255)
    return (1 / np.where(is_byte, high, 1)).astype(np.float32) if is_byte.any() else None


def _one_hot(space: spaces.Discrete) -> Observation:
    first, count = int(space.start), int(space.n)

    def write(observed: Any, row: NDArray[Any]) -> None:
        index = int(observed) - first
        if not 0 <= index < count:
            raise Misconduct(f"showed {observed}; its space has {first} to {first + count - 1}")
        row[:] = 0
        row[index] = 1

    return Observation((count,), torch.float32, write)


def _flattened(env_id: str, space: Any) -> Observation:
    for place, part in _leaves(space):
        if isinstance(part, spaces.Box) and (len(part.shape) > 2 or _axes(env_id, part, None) == "hw"):
            raise _refusal(env_id, space, f"with an image, {place}of shape {part.shape}")
    try:
        flat = flatten_space(space)
    except NotImplementedError:
        flat = None
    if not isinstance(flat, spaces.Box):
        raise _refusal(env_id, space, "that cannot be flattened to a fixed size")
    whole = _array(flat, "none")
    is_flat = isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary)

    def write(observed: Any, row: NDArray[Any]) -> None:
        if is_flat and not space.contains(np.asarray(observed, space.dtype)):
            raise Misconduct(f"showed {np.asarray(observed).tolist()}; its space is {space}")
        whole.write(flatten(space, observed), row)

    return whole._replace(write=write)


def _leaves(space: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the place and the space of every entry of nested dictionaries and tuples."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        yield place, space
        return
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    for key, part in parts:
        yield from _leaves(part, f"{place}{key!r} ")


def _refusal(env_id: str, space: Any, what: str) -> UserError:
    choice = ""
    if isinstance(space, spaces.Dict):
        choice = f"env_options.observation_key, {_one_of(list(space.spaces))}, to choose an entry, or "
    return UserError(
        f"{env_id!r} shows a {type(space).__name__} {what}; expected {choice}a wrapper such as "
        "gymnasium.wrappers.FilterObservation or TransformObservation"
    )


def _one_of(choices: Any) -> str:
    return "null" if choices is None else " or ".join(map(repr, choices))


# -- actions -------------------------------------------------------------------------------------------------


def read_action(env_id: str, space: Any, num_envs: int) -> Action:
    """Return the conversion of actions to a gymnasium space.

    A row has one index from 0 for each of several discrete choices; a switch is a choice of two. Continuous
    actions are flattened to a row.

    Args:
        env_id: The environment, for messages.
        space: The space of its actions.
        num_envs: Number of rows.

    Raises:
        UserError: If the space is of another kind.
    """
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return Action(
            discrete_action(int(space.n), num_envs), None, (lambda row: row + first) if first else _unchanged
        )
    if isinstance(space, spaces.MultiDiscrete):
        return _choices(space, space.nvec, space.start, num_envs)
    if isinstance(space, spaces.MultiBinary):
        return _choices(space, np.full(space.shape, 2), 0, num_envs)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return _numbers(space, num_envs)
    raise UserError(
        f"{env_id!r} has actions {space}; expected Discrete, MultiDiscrete, MultiBinary or a Box of floats"
    )


def _choices(space: Any, counts: NDArray[Any], first: Any, num_envs: int) -> Action:
    def read(row: NDArray[Any]) -> NDArray[Any]:
        return (row.reshape(space.shape) + first).astype(space.dtype)

    return Action(multi_discrete_action(counts.flatten().tolist(), num_envs), None, read)


def _numbers(space: spaces.Box, num_envs: int) -> Action:
    bounds = (space.low.flatten().astype(np.float32), space.high.flatten().astype(np.float32))

    def read(row: NDArray[Any]) -> NDArray[Any]:
        action = row.reshape(space.shape)
        if space.dtype == action.dtype:
            return action
        # A bound may have been rounded up, in float32.
        return np.clip(action.astype(space.dtype), space.low, space.high)

    return Action(continuous_action(*bounds, num_envs), bounds, read)


def _unchanged(row: Any) -> Any:
    return row
