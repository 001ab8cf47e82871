"""Replay memory for stacked frames, which stores each frame once and rebuilds every stack bit for bit.

An observation of Atari is a stack of the last 4 frames, so neighbouring transitions share most of them. The
memory has two rings for each environment, its lanes: one of single frames and one of transitions. Both are
numbered in the order of arrival, and each transition has the numbers of its oldest and newest frame. Where a
stack reaches back before the first frame of its episode, it repeats that frame. So the three zero frames at
the start of an episode of ALE's vector environment are stored as one; other initial stacks are kept in full.

The code uses NumPy: a vector step takes dozens of operations on a few numbers, at which torch is slower.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from lit_gfs.buffers.n_step import last_real, outcome
from lit_gfs.buffers.ring import RingStorage
from lit_gfs.errors import UserError, require_positive

_KEYS: dict[str, str | tuple[str, str]] = {
    "action": "action",
    "reward": ("next", "reward"),
    "done": ("next", "done"),
    "terminated": ("next", "terminated"),
    "truncated": ("next", "truncated"),
    "end_of_life": ("next", "end_of_life"),
}
_OPTIONAL = {"end_of_life"}
_BY_LANE = ("first_kept", "frame_count", "episode_start", "open")


class FrameStackStorage(RingStorage):
    """Transitions of ``num_envs`` environments whose observations are stacks of frames.

    Index ``i < len(storage)`` is the i-th transition that can be sampled, environment by environment, the
    oldest first. Indices shift when old transitions are dropped, so priorities belong to slots.

    The first ``extend`` reserves the memory, which is used as it fills: a frame and some 40 bytes per
    transition, and a share ``episode_slack`` of additional frames. An episode has more frames than
    transitions, by the frames of its initial stack without leading repetitions: 2 on Atari. If episodes are
    too short for the slack (on Atari below 67 steps on average), the oldest transitions are dropped early,
    and the storage is full with fewer than ``capacity`` transitions.

    Args:
        capacity: Most transitions kept, in equal parts for all environments: rounded down to a multiple of
            ``num_envs``.
        num_envs: Number of environments.
        episode_slack: Share of additional frames for episode starts.
        n_step: Steps up to the next observation of a sampled transition, see `RingStorage`.

    Raises:
        UserError: If there is less than one transition per environment or one step, or the slack is negative.
    """

    def __init__(self, capacity: int, num_envs: int, episode_slack: float = 0.03, n_step: int = 1) -> None:
        require_positive(num_envs=num_envs)
        if capacity < num_envs:
            raise UserError(
                f"capacity is {capacity}; expected at least one transition for each of {num_envs} envs"
            )
        if episode_slack < 0:
            raise UserError(f"episode_slack is {episode_slack}; expected 0 or more, such as 0.03")
        self._lane = capacity // num_envs
        super().__init__(self._lane * num_envs, n_step)
        self._slack = episode_slack
        self._envs = np.arange(num_envs)
        self._empty()

    def _empty(self) -> None:
        """Remove all transitions and free the memory."""
        zeros = np.zeros_like(self._envs)
        self._stack = 0
        self._ring = 0
        self._frames: NDArray[Any] = np.empty(0)
        # For each transition: its entries, and the numbers of its "oldest" and "newest" frame.
        self._columns: dict[str, NDArray[Any]] = {}
        self._count = 0  # vector steps appended so far, and so the number of each lane's next transition
        self._first_kept = zeros  # number of each lane's oldest transition that can be sampled
        self._frame_count = zeros  # number of each lane's next frame
        self._episode_start = zeros  # number of the first frame of each lane's latest episode
        self._open = zeros.astype(np.bool_)  # whether each lane's latest episode goes on
        self._number_transitions()

    def _allocate(self, stack: int, frames: NDArray[Any], columns: dict[str, NDArray[Any]]) -> None:
        """Reserve memory for rows like those of ``frames`` and ``columns``, all ``(num_envs, T, *row)``."""
        self._stack = stack
        self._ring = self._ring_size(stack)
        self._frames = _reserve(len(self._envs) * self._ring, frames)
        self._columns = {name: _reserve(self.max_size, rows) for name, rows in columns.items()}

    def _ring_size(self, stack: int) -> int:
        # A lane of transitions needs a newest frame for each, and a stack of frames before the first of them.
        return self._lane + stack + math.ceil(self._slack * self._lane)

    # -- writing -----------------------------------------------------------------------------------------

    def extend(self, rollout: TensorDictBase) -> Tensor:
        """Append a rollout.

        Args:
            rollout: ``(num_envs, T)`` on the CPU, the continuation of the previous call's: ``observation``
                ``(num_envs, T, stack, *frame)``, ``action``, and under ``next`` ``observation``, ``reward``,
                ``done``, ``terminated``, ``truncated`` and optionally ``end_of_life``. Other keys are
                dropped.

        Returns:
            The indices of the appended transitions, ``(num_envs, T)``; -1 for those already dropped.

        Raises:
            ValueError: If a key is missing, the number of environments differs, or frames do not continue:
                within an episode, an observation must equal the next observation of the step before, and a
                next observation must be the observation with a new frame at its end. Nothing is stored then.
        """
        observation, next_observation = rollout["observation"].numpy(), rollout["next", "observation"].numpy()
        columns = {
            name: value.numpy()
            for name, key in _KEYS.items()
            if (value := rollout.get(key, None)) is not None
        }
        optional = _OPTIONAL & (self._columns or columns).keys()
        expected = (_KEYS.keys() - _OPTIONAL) | optional
        if columns.keys() != expected:
            raise ValueError(f"the rollout holds {sorted(columns)}; expected {sorted(expected)}")
        if len(observation) != len(self._envs):
            raise ValueError(f"the rollout has {len(observation)} envs; expected {len(self._envs)}")
        # An episode starts after each end, and at the first step of a lane whose latest episode has ended.
        ends = columns["done"].reshape(len(self._envs), -1)
        starts = np.concatenate([~self._open[:, None], ends[:, :-1]], 1)
        self._check_stream(observation, next_observation, starts)
        if not self._columns:
            numbers = starts.astype(np.int64)
            self._allocate(
                observation.shape[2], observation[:, :, 0], {**columns, "newest": numbers, "oldest": numbers}
            )
        self.dropped_slots = self.dropped_slots[:0]
        # Write in parts that fit into the rings, however many episodes start in them.
        steps = starts.shape[1]
        part = min(self._lane, self._ring // (self._stack + 1))
        for begin in range(0, steps, part):
            at = slice(begin, begin + part)
            transitions = {name: value[:, at] for name, value in columns.items()}
            self._append(observation[:, at], next_observation[:, at], starts[:, at], transitions)
        self._open = ~ends[:, -1]
        # The new transitions are the last ones of each lane.
        indices = self._ends[:, None] - np.arange(steps, 0, -1)
        indices[indices < (self._ends - self._lengths)[:, None]] = -1
        return torch.from_numpy(indices)

    def _append(
        self,
        observation: NDArray[Any],
        next_observation: NDArray[Any],
        starts: NDArray[np.bool_],
        columns: dict[str, NDArray[Any]],
    ) -> None:
        # Number the frames. Each step has one new frame, the last one of its next observation. A step that
        # starts an episode also has those of its initial stack, without the leading repetitions.
        envs, times = starts.nonzero()
        initial = observation[envs, times]
        repeats = _leading_repeats(initial)
        new_frames = np.ones(starts.shape, dtype=np.int64)
        new_frames[envs, times] += self._stack - repeats
        newest = self._frame_count[:, None] + new_frames.cumsum(1) - 1
        first_frames = np.where(starts, newest - new_frames + 1, self._episode_start[:, None])
        episode_start = np.maximum.accumulate(first_frames, axis=1)

        # Write the newest frame of each step, then the frames of initial stacks.
        self._frames[self._frame_slots(self._envs[:, None], newest)] = next_observation[:, :, -1]
        if len(envs):
            position = np.arange(self._stack) - repeats[:, None]
            numbers = episode_start[envs, times, None] + position
            slots = self._frame_slots(envs[:, None], numbers)
            self._frames[slots[position >= 0]] = initial[position >= 0]

        # Write the transitions. Their two stacks never reach back before the episode's first frame.
        slots = self._slots(self._count + np.arange(starts.shape[1]))
        oldest = np.maximum(newest - self._stack, episode_start)
        for name, rows in {**columns, "newest": newest, "oldest": oldest}.items():
            self._columns[name][slots] = rows
        self._count += starts.shape[1]
        self._frame_count = newest[:, -1] + 1
        self._episode_start = episode_start[:, -1]
        self._drop_overwritten(int(new_frames.sum(1).max()))

    def _drop_overwritten(self, new_frames: int) -> None:
        """Drop transitions that were overwritten, or whose frames were.

        Args:
            new_frames: Most frames that a lane has just got.
        """
        first_kept = np.maximum(self._first_kept, self._count - self._lane)
        # Every transition has its own newest frame, but the first ones of an episode share their oldest. So
        # this many transitions at most have lost a frame.
        candidates = first_kept[:, None] + np.arange(new_frames + self._stack)
        overwritten = (
            self._columns["oldest"][self._slots(candidates)] < (self._frame_count - self._ring)[:, None]
        )
        is_dropped = overwritten & (candidates < self._count)
        self._first_kept = first_kept + is_dropped.sum(1)
        self.dropped_slots = np.append(self.dropped_slots, self._slots(candidates)[is_dropped])
        self._number_transitions()

    def _number_transitions(self) -> None:
        """Give indices ``0 ... len - 1`` to the transitions that can be sampled, lane after lane."""
        self._lengths = self._count - self._first_kept
        self._ends = self._lengths.cumsum()
        self._length = int(self._ends[-1])

    def _check_stream(
        self, observation: NDArray[Any], next_observation: NDArray[Any], starts: NDArray[np.bool_]
    ) -> None:
        # Within an episode, a step begins with the next observation of the step before.
        continues = starts.copy()
        continues[:, 1:] |= _equal(observation[:, 1:], next_observation[:, :-1])
        if self._count:
            # The first step follows on the last one of the previous rollout.
            last = self._rebuild(self._envs, self._slots(self._count - 1)[:, 0])[:, None, 1:]
            continues[:, :1] |= _equal(observation[:, :1], last)
        # In every step, the next observation drops the oldest frame, and adds one at its end.
        wrong = ~(continues & _equal(next_observation[:, :, :-1], observation[:, :, 1:]))
        if wrong.any():
            env, time = np.argwhere(wrong)[0].tolist()
            raise ValueError(
                f"the frames of env {env} do not go on at step {time} of the rollout; expected each"
                " observation to be the previous one with a new frame at its end (after a reset from outside,"
                " call end_episodes() first)"
            )

    def end_episodes(self) -> None:
        """Truncate the open episodes, because the environments were reset from outside.

        The last transition of each environment becomes ``truncated`` and ``done``, unless it is done already;
        its next observation stays. The next rollout starts new episodes.
        """
        if self._open.any():
            last = self._slots(self._count - 1)[self._open, 0]
            self._columns["truncated"][last] = True
            self._columns["done"][last] = True
            self._open = np.zeros_like(self._open)

    # -- reading -----------------------------------------------------------------------------------------

    def get(self, index: int | slice | Tensor) -> TensorDict:
        """Rebuild transitions.

        Args:
            index: Which of the ``len(storage)`` transitions; a tensor may have any shape.

        Returns:
            A TensorDict with the shape of ``index``: ``observation``, ``action`` and under ``next``
            ``observation``, ``reward``, ``done``, ``terminated``, ``truncated`` (and ``end_of_life``). Both
            observations are views of the same ``stack + 1`` frames: clone one before changing it in place.

        Raises:
            IndexError: If an index is negative or not less than ``len(storage)``.
        """
        at = self._indices(index)
        env, number = self._located(at)
        slots = env * self._lane + number % self._lane
        if self.n_step > 1:
            return self._n_steps(env, number)
        # Rebuild both observations at once: they overlap in all frames but one each.
        frames = torch.from_numpy(self._rebuild(env, slots))
        entries: dict[str, Any] = {"observation": frames.narrow(at.ndim, 0, self._stack)}
        next_: dict[str, Any] = {"observation": frames.narrow(at.ndim, 1, self._stack)}
        for name, rows in self._columns.items():
            if name in _KEYS:
                (entries if name == "action" else next_)[name] = torch.from_numpy(np.asarray(rows[slots]))
        # The public constructor checks every entry, which takes as long as rebuilding the frames.
        shape = torch.Size(at.shape)
        entries["next"] = TensorDict._new_unsafe(source=next_, batch_size=shape)
        return TensorDict._new_unsafe(source=entries, batch_size=shape)

    def _n_steps(self, env: NDArray[np.int64], number: NDArray[np.int64]) -> TensorDict:
        """Rebuild transitions of several steps: two stacks that need not overlap."""
        numbers = number[..., None] + np.arange(self.n_step)
        slots = env[..., None] * self._lane + numbers % self._lane
        # The steps end with the one that ends the episode, and with the newest one.
        ends = self._columns["done"][slots].squeeze(-1)
        is_real = (ends.cumsum(-1) - ends == 0) & (numbers < self._count)
        flags = {name: column for name, column in self._columns.items() if name in _KEYS and name != "action"}
        last = last_real(slots, is_real)
        next_: dict[str, Any] = {
            "observation": torch.from_numpy(self._rebuild(env, last, first=1)),
            **outcome(flags, slots, is_real),
        }
        entries: dict[str, Any] = {
            "observation": torch.from_numpy(self._rebuild(env, slots[..., 0], last=self._stack)),
            "action": torch.from_numpy(np.asarray(self._columns["action"][slots[..., 0]])),
            "next": TensorDict._new_unsafe(source=next_, batch_size=torch.Size(number.shape)),
        }
        return TensorDict._new_unsafe(source=entries, batch_size=torch.Size(number.shape))

    def _located(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the lane of each index, and from the end of the lane the transition's number."""
        env = np.asarray(np.searchsorted(self._ends, index, side="right"))
        return env, index + (self._count - self._ends)[env]

    def slots(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots of transitions."""
        env, number = self._located(index)
        return env * self._lane + number % self._lane

    def index_of(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of the transitions in slots."""
        env, place = slots // self._lane, slots % self._lane
        # Counted back from the newest transition of the lane, which is the last one of its indices.
        return self._ends[env] - 1 - (self._count - 1 - place) % self._lane

    def _rebuild(
        self, env: NDArray[np.int64], slots: NDArray[np.int64], first: int = 0, last: int | None = None
    ) -> NDArray[Any]:
        """Return the frames ``(*slots.shape, stack + 1, *frame)`` of both stacks of transitions, or some."""
        # Frame numbers below the oldest one mean repetitions of it.
        newest, oldest = (np.asarray(self._columns[name][slots])[..., None] for name in ("newest", "oldest"))
        numbers = np.maximum(newest + np.arange(-self._stack, 1)[first:last], oldest)
        return self._frames[self._frame_slots(np.asarray(env)[..., None], numbers)]

    def _slots(self, numbers: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots of each lane's transitions ``numbers``, ``(num_envs, 1)`` or ``(num_envs, n)``."""
        return self._envs[:, None] * self._lane + numbers % self._lane

    def _frame_slots(self, env: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return env * self._ring + numbers % self._ring

    def __len__(self) -> int:
        """Return the number of transitions that can be sampled."""
        return self._length

    @property
    def write_count(self) -> int:
        """Number of transitions appended so far."""
        return self._count * len(self._envs)

    # -- state -------------------------------------------------------------------------------------------

    @property
    def row_count(self) -> int:
        """Number of vector steps appended so far, and so the number of the next one."""
        return self._count

    @property
    def first_row(self) -> int:
        """Number of the oldest vector step with a transition that can be sampled."""
        return int(self._first_kept.min())

    def sizes(self) -> dict[str, int]:
        """Return the capacity, the number of environments, and each one's frames for episode starts."""
        return {
            "capacity": self.max_size,
            "num_envs": len(self._envs),
            "slack_frames": self._ring_size(0) - self._lane,
        }

    def position(self) -> dict[str, list[int]]:
        """Return the counts and numbers that each lane has, ``num_envs`` each, and those of the storage."""
        by_lane = (self._first_kept, self._frame_count, self._episode_start, self._open)
        return {
            "row_count": [self._count],
            "stack": [self._stack],
            **{
                name: numbers.astype(np.int64).tolist()
                for name, numbers in zip(_BY_LANE, by_lane, strict=True)
            },
        }

    def rows(self, first: int, last: int) -> dict[str, Any]:
        """Copy vector steps out, with all frames of their stacks; see `RingStorage.rows`.

        Returns:
            ``columns`` ``(num_envs, last - first, *row)`` of the transitions; ``frames`` ``(n, *frame)``, one
            environment after the other; ``frame_begin`` and ``frame_end`` ``(num_envs,)``, the number of
            each environment's first frame, and of the frame after its last one.
        """
        slots = self._slots(np.arange(first, last))
        end = self._columns["newest"][slots[:, -1]] + 1
        # Transitions that were dropped early may have had frames that are overwritten by now.
        kept = np.maximum(self._columns["oldest"][slots[:, 0]], self._frame_count - self._ring)
        begin = np.minimum(kept, end)
        return {
            "numbers": torch.tensor([first, last]),
            "columns": {name: torch.from_numpy(column[slots]) for name, column in self._columns.items()},
            "frames": torch.from_numpy(self._frames[self._frame_ranges(begin, end)]),
            "frame_begin": torch.from_numpy(begin),
            "frame_end": torch.from_numpy(end),
        }

    def _frame_ranges(self, begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots of frames ``begin`` to ``end`` of each lane, one lane after the other."""
        numbers = [np.arange(first, last) for first, last in zip(begin, end, strict=True)]
        return self._frame_slots(np.repeat(self._envs, end - begin), np.concatenate(numbers))

    def _set_position(self, position: dict[str, list[int]]) -> None:
        (self._count,), (self._stack,) = position["row_count"], position["stack"]
        by_lane = (np.array(position[name]).reshape(self._envs.shape) for name in _BY_LANE)
        self._first_kept, self._frame_count, self._episode_start, is_open = by_lane
        self._open = is_open.astype(np.bool_)
        self._number_transitions()

    def _write(self, first: int, last: int, rows: dict[str, Any]) -> None:
        columns = {name: column.numpy() for name, column in rows["columns"].items()}
        frames, begin, end = (rows[name].numpy() for name in ("frames", "frame_begin", "frame_end"))
        if not self._columns:
            self._allocate(self._stack, frames[None], columns)
        slots = self._slots(np.arange(first, last))
        for name, column in self._columns.items():
            column[slots] = columns[name]
        self._frames[self._frame_ranges(begin, end)] = frames


def _reserve(length: int, like: NDArray[Any]) -> NDArray[Any]:
    """Reserve ``length`` rows like those of ``(num_envs, T, *row)``; memory is used when written."""
    return np.zeros((length, *like.shape[2:]), like.dtype)


def _leading_repeats(stacks: NDArray[Any]) -> NDArray[np.int64]:
    """Count the frames at the start of each stack ``(K, stack, *frame)`` that equal their successor."""
    return _equal(stacks[:, 1:], stacks[:, :-1]).astype(np.int64).cumprod(1).sum(1)


def _equal(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.bool_]:
    """Compare arrays ``(n, m, ...)`` bit for bit; return which of the ``(n, m)`` are equal."""
    return (_words(left) == _words(right)).all(-1)


def _words(values: NDArray[Any]) -> NDArray[Any]:
    """View ``(n, m, ...)`` as words ``(n, m, words)`` of 8 bytes, or of 1 byte where 8 do not fit evenly."""
    rows = values.reshape(*values.shape[:2], math.prod(values.shape[2:]))
    size = rows.shape[-1] * rows.itemsize
    return np.ascontiguousarray(rows).view(np.uint8 if size % 8 else np.uint64)
