"""A batch of simulators as one TorchRL environment."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from lit_gfs.envs.history import History
from lit_gfs.errors import STOPS, EnvironmentFault, UserError, in_one_line

Arrays = dict[str, NDArray[Any]]

_DONE_KEYS = ("done", "terminated", "truncated")
_CPU = torch.device("cpu")

_HUGE_REWARD = 1e15
"""Rewards from here on are told of: sums of their squares, which losses are, soon leave float32."""
_LARGEST = float(np.finfo(np.float32).max)

_told_of_rewards: set[str] = set()
"""Ids of environments whose huge rewards were told of."""

_Result = TypeVar("_Result")


@dataclass(slots=True)
class Activity:
    """What an environment's simulators are at, readable from any thread."""

    calls: int = 0
    """Goes up when simulators are set to work, and when they are done: odd while they are at it."""
    index: int | None = None
    """Which simulator is at it, or was last; ``None`` where they work all at once."""
    work: str = "a step"
    """What they are set to."""


class Outcome(NamedTuple):
    """What one step of every simulator led to.

    All arrays have ``num_envs`` rows, and nobody else writes to them later.
    """

    observations: Arrays
    """What the step led to; where an episode ended, its final observation."""
    reward: NDArray[Any]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    restarted: Arrays | None = None
    """Where simulators began the next episode by themselves: the same, but with its first observation.

    ``None`` leaves that to `BatchedEnv`.
    """


class Step(NamedTuple):
    """One step of every simulator, as `BatchedEnv.advance` tells it.

    All arrays have ``num_envs`` rows, and nobody writes to them later.
    """

    observations: Arrays
    """What the step led to; where an episode ended, its final observation."""
    reward: NDArray[Any]
    done: NDArray[np.bool_]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    episode_return: NDArray[np.float64]
    """Sum of the episode's raw rewards, this step's included."""
    episode_length: NDArray[np.int64]


class Misconduct(Exception):
    """Raised in the midst of a simulator's step; says what the simulator did, as `EnvironmentFault` does."""


class Unresponsive(Misconduct):
    """Raised in the midst of a simulator's step, by who watches it, when that takes too long."""


def env_seeds(seed: int, num_envs: int) -> NDArray[np.int64]:
    """Derive one seed in ``[0, 2**31)`` per environment, all of them different."""
    first = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return (first + np.arange(num_envs)) % 2**31


def discrete_action(num_actions: int, num_envs: int) -> Categorical:
    """Describe actions ``(num_envs,)`` that are one of ``num_actions``."""
    return Categorical(num_actions, shape=(num_envs,), dtype=torch.int64)


def multi_discrete_action(choices: Sequence[int], num_envs: int) -> MultiCategorical:
    """Describe actions ``(num_envs, parts)``, each part one of as many as ``choices`` says."""
    return MultiCategorical(list(choices), shape=(num_envs, len(choices)), dtype=torch.int64)


def continuous_action(low: NDArray[Any], high: NDArray[Any], num_envs: int) -> Bounded | Unbounded:
    """Describe actions ``(num_envs, dim)`` between bounds ``(dim,)``, of which some may be infinite."""
    if not np.isfinite([low, high]).all():
        # A bounded spec draws NaN where there is no bound.
        return Unbounded((num_envs, len(low)), dtype=torch.float32)
    bounds = [torch.as_tensor(bound, dtype=torch.float32).expand(num_envs, -1) for bound in (low, high)]
    return Bounded(bounds[0], bounds[1], shape=bounds[0].shape, dtype=torch.float32)


class BatchedEnv(EnvBase):
    """Base of the suites: ``num_envs`` simulators that begin a new episode in the step that ends one.

    ``("next", "observation")`` of an ended episode is its final observation. The first observation of the
    next episode is kept aside until TorchRL asks for a reset of those environments, which then costs nothing.
    Stepping on without that reset goes on in the new episode.

    ``episode_return`` (raw) and ``episode_length`` are running totals over the current episode, the latest
    step included; both are 0 at a reset.

    A full reset after `set_seed` begins a trajectory that is a pure function of the seed and the actions,
    whatever happened before. Without a new seed, resets go on drawing from the simulators' generators.

    `advance` and `shown` are the same stream without tensordicts, for a collector that knows of them.

    `snapshot` and `restore` bring all simulators back to where they were, in this process or in another: by
    the suite's own arrays where it has them (`_save_simulators`), else by taking the actions since the last
    seeded resets again (`lit_gfs.envs.history.History`).

    Args:
        env_id: The id that a user knows this environment by.
        num_envs: How many simulators there are.
        observations: What the simulators show, by name, each ``(num_envs, *shape)``.
        action: What they take, ``(num_envs,)`` or ``(num_envs, dim)``.
        frame_skip: Simulator frames per step.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
    """

    steps_per_seed: ClassVar[int] = 1_000
    """Steps after which a simulator's next episode begins with a seed of its own, see `History`."""

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        observations: dict[str, TensorSpec],
        action: TensorSpec,
        frame_skip: int,
        seed: int | None,
    ) -> None:
        super().__init__(device=_CPU, batch_size=torch.Size([num_envs]))
        self.env_id = env_id
        self.num_envs = num_envs
        self.activity = Activity()
        self._frames_per_step = frame_skip
        column = (num_envs, 1)
        self.observation_spec = Composite(
            **observations,
            episode_return=Unbounded(column, dtype=torch.float32),
            episode_length=Unbounded(column, dtype=torch.int64),
            shape=(num_envs,),
        )
        self._floating = [name for name, spec in observations.items() if spec.dtype.is_floating_point]
        self.action_spec = action
        self.reward_spec = Unbounded(column, dtype=torch.float32)
        self.full_done_spec = Composite(
            {key: Binary(1, shape=column, dtype=torch.bool) for key in _DONE_KEYS}, shape=(num_envs,)
        )
        first_seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._episodes = _Episodes(num_envs, first_seed)
        self._none = np.zeros(num_envs, dtype=np.bool_)
        self._history: History | None = None
        # Shared by all states that `step_and_maybe_reset` returns: three more tensors would take as long as a
        # tenth of a CartPole step. TorchRL writes into such a state in place only at a reset: zeros.
        self._going_on = self._not_done()

    @property
    def frame_skip(self) -> int:
        """Simulator frames per step."""
        # No attribute of the instance: TorchRL would take that for a wish, and repeat every step as often.
        return self._frames_per_step

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated; ``None`` where that is not known."""
        return None

    # -- what a suite provides ---------------------------------------------------------------------------

    @abstractmethod
    def _simulate(self, action: NDArray[Any]) -> Outcome:
        """Step every simulator.

        Args:
            action: ``(num_envs,)`` int64 or ``(num_envs, dim)`` float32.
        """

    @abstractmethod
    def _restart(self, indices: NDArray[np.int64], seed: int | None) -> Arrays:
        """Begin new episodes.

        Args:
            indices: Which simulators; all of them, in order, if there is a seed.
            seed: Decides all that follows; ``None`` goes on with the simulators' generators.

        Returns:
            The first observations, by name, one row per index.
        """

    def _restart_seeded(self, indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> Arrays:
        """Begin new episodes, each of which follows from a seed and its actions alone.

        Args:
            indices: Which simulators.
            seeds: One for each of them.

        Returns:
            The first observations, by name, one row per index.
        """
        raise NotImplementedError(f"{type(self).__name__} seeds all simulators at once")

    @property
    def is_repeatable(self) -> bool:
        """Whether seeds and actions decide what the simulators do, as far as anybody knows."""
        return True

    def _save_simulators(self) -> dict[str, Any] | None:
        """Return tensors and plain data that hold where the simulators are; ``None`` if that is not known."""
        return None if self._history is None else self._history.state()

    def _load_simulators(self, state: dict[str, Any]) -> None:
        """Bring the simulators back to where they were, and with them what `_episodes` says of them."""
        self._repeat(state)

    def _send(self, action: NDArray[Any]) -> None:
        """Hand every simulator its action, and return at once where simulators have threads of their own.

        By then it is in ``self._sent``.
        """

    def _receive(self) -> Outcome:
        """Return what the actions that were sent led to."""
        return self._simulate(self._sent)

    def _have(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Have the simulators do something, visibly to who watches their activity.

        Raises:
            EnvironmentFault: If one of them raises an exception, or asks for the process to end.
        """
        activity = self.activity
        activity.calls += 1
        try:
            return work(*arguments)
        except (UserError, *STOPS):
            raise
        except BaseException as error:
            what = str(error) if isinstance(error, Misconduct) else f"raised {in_one_line(error)}"
            raise EnvironmentFault(self.env_id, activity.index, what) from error
        finally:
            activity.calls += 1

    # -- TorchRL -----------------------------------------------------------------------------------------

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._episodes.seed = seed

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        episodes = self._episodes
        asked = None if tensordict is None else tensordict.get("_reset", None)
        if asked is None or not episodes.shown:
            self._begin_all()
        else:
            self._begin_again(asked.reshape(-1).numpy())
        # Copies, as collectors write in place into what a reset returned.
        shown = {key: values.copy() for key, values in (episodes.shown | episodes.totals()).items()}
        return self._tensordict({**_tensors(shown), **self._not_done()})

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        step = self._take(tensordict.get("action").numpy())
        self._episodes.restarted = step.done.copy()
        return self._tensordict(_following(step))

    def _take(self, action: NDArray[Any]) -> Step:
        self._sent = action
        return self._recorded(self._account(self._have(self._simulate, action)))

    def _recorded(self, step: Step) -> Step:
        """Note the action that was sent; where it is time for it, begin the next episode with a new seed."""
        history = self._history
        if history is not None:
            history.record(self._sent)
            due = history.due(step.done)
            if len(due):
                self._begin_with(due, history.next_seeds(due))
        return step

    def _account(self, outcome: Outcome) -> Step:
        """Count a step, and begin the next episodes of what ended.

        Raises:
            EnvironmentFault: If an observation or a reward is not finite: every network that learned from it
                would be lost.
        """
        self._require_finite(outcome.observations)
        episodes = self._episodes
        ended = outcome.terminated | outcome.truncated
        # One sum is quicker than a look at every reward; it is below nothing if one of them is NaN.
        is_usual = np.dot(outcome.reward, outcome.reward) < _HUGE_REWARD**2
        if not is_usual:
            self._require_usable(outcome.reward)
        episodes.count(outcome.reward)
        if not is_usual:
            episodes.keep_finite()
        step = Step(
            outcome.observations,
            outcome.reward,
            ended,
            outcome.terminated,
            outcome.truncated,
            episodes.returns,
            episodes.lengths,
        )
        episodes.shown = outcome.observations
        if outcome.restarted is None:
            self._begin(np.flatnonzero(ended))
        else:
            episodes.begin(ended, outcome.restarted)
        return step

    def _require_finite(self, shown: Arrays) -> None:
        for key in self._floating:
            # A sum takes half as long as a look at every value, and is not finite if one of them is not.
            if math.isfinite(np.add.reduce(shown[key], axis=None, dtype=np.float64)):
                continue
            is_finite = np.isfinite(shown[key]).reshape(len(shown[key]), -1).all(axis=1)
            if not is_finite.all():
                index = int(np.argmin(is_finite))
                raise EnvironmentFault(self.env_id, index, "showed an observation that is not finite")

    def _require_usable(self, reward: NDArray[Any]) -> None:
        """Refuse rewards that are not finite in float32; tell of huge ones, once in a process."""
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(reward.astype(np.float32))
        index = int(np.argmin(is_finite))
        if not is_finite[index]:
            step = self._episodes.lengths[index] + 1
            what = f"gave a reward of {reward[index]} in step {step:,} of its episode"
            raise EnvironmentFault(self.env_id, index, what)
        index = int(np.argmax(np.abs(reward)))
        if abs(reward[index]) >= _HUGE_REWARD and self.env_id not in _told_of_rewards:
            _told_of_rewards.add(self.env_id)
            warnings.warn(
                f"environment {index} of {self.env_id} gave a reward of {reward[index]:g}, too large for "
                "losses in float32, which square it; choose a model.reward_scale that brings it to about 1",
                stacklevel=2,
            )

    def _begin_all(self) -> None:
        """Begin every episode anew, from the seed if there is a new one."""
        episodes, history = self._episodes, self._history
        everything = np.arange(self.num_envs)
        if history is None or episodes.seed is not None:
            shown = self._have(self._restart, everything, episodes.seed)
        else:
            seeds = history.next_seeds(everything)
            shown = self._have(self._restart_seeded, everything, seeds)
            history.begin_all(seeds)
        if history is not None and episodes.seed is not None:
            history.begin_all(env_seeds(episodes.seed, self.num_envs))
        episodes.begin(slice(None), shown)
        episodes.seed = None
        episodes.restarted = self._none

    def _begin_again(self, mask: NDArray[np.bool_]) -> None:
        """Begin episodes where a reset is asked for, unless they have just begun."""
        episodes = self._episodes
        if episodes.seed is not None and mask.all():
            self._begin_all()
        else:
            indices = np.flatnonzero(mask & ~episodes.restarted)
            if self._history is None or len(indices) == 0:
                self._begin(indices)
            else:
                # Somebody cuts episodes that go on: what follows must not depend on the moment.
                self._begin_with(indices, self._history.next_seeds(indices))
            episodes.restarted = episodes.restarted & ~mask

    def _begin(self, indices: NDArray[np.int64]) -> None:
        """Begin episodes in some simulators, or in none of them."""
        if len(indices) > 0:
            self._show_first(indices, self._have(self._restart, indices, None))

    def _begin_with(self, indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        """Begin episodes in some simulators with a seed for each."""
        self._show_first(indices, self._have(self._restart_seeded, indices, seeds))
        if self._history is not None:
            self._history.begin(indices, seeds)

    def _show_first(self, indices: NDArray[np.int64], first: Arrays) -> None:
        """Have some simulators show the first observations of an episode, one row per index."""
        # Earlier arrays stay as they are: they have been handed out.
        shown = {key: self._episodes.shown[key].copy() for key in first}
        for key, rows in first.items():
            shown[key][indices] = rows
        self._episodes.begin(indices, shown)

    @property
    def shown(self) -> Arrays:
        """What the next action answers to, by name, ``(num_envs, *shape)``; empty before the first reset."""
        return self._episodes.shown

    def advance(self, action: NDArray[Any]) -> Step:
        """Step every simulator, then reset what ended: `step_and_maybe_reset` without tensordicts.

        `shown` is then what the next action answers to.

        Args:
            action: ``(num_envs,)`` int64 or ``(num_envs, dim)`` float32.
        """
        return self._reset_ended(self._take(action))

    def begin(self, action: NDArray[Any]) -> None:
        """Begin what `advance` does, and leave it to `finish` to wait for it.

        Simulators with threads of their own (Atari) step in the meantime. A full reset drops the step.

        Args:
            action: ``(num_envs,)`` int64 or ``(num_envs, dim)`` float32.
        """
        self._sent = action
        self._have(self._send, action)

    def finish(self) -> Step:
        """Return what the step that was begun led to."""
        return self._reset_ended(self._recorded(self._account(self._have(self._receive))))

    @property
    def open_episodes(self) -> int:
        """How many episodes have begun and go on."""
        return int(np.count_nonzero(self._episodes.lengths))

    # -- there and back ----------------------------------------------------------------------------------

    def keep_history(self) -> None:
        """Be ready for `snapshot`; to be called before the first reset."""
        if self.is_repeatable and not self._keeps_arrays:
            self._history = History(self.num_envs, self.steps_per_seed)

    @property
    def _keeps_arrays(self) -> bool:
        return type(self)._save_simulators is not BatchedEnv._save_simulators

    @property
    def is_restorable(self) -> bool:
        """Whether `snapshot` tells where the simulators are, once they have been reset."""
        if self._history is None:
            return self._keeps_arrays
        return self._history.is_complete or not self._episodes.shown

    def snapshot(self) -> dict[str, Any] | None:
        """Return where all simulators and their episodes are, between two steps: tensors and plain data.

        ``None`` if that cannot be told: nothing brings these simulators back.
        """
        episodes = self._episodes
        if not episodes.shown or episodes.seed is not None:
            return None
        simulators = self._save_simulators()
        if simulators is None:
            return None
        return {
            "simulators": simulators,
            "shown": {key: torch.from_numpy(values.copy()) for key, values in episodes.shown.items()},
            "returns": torch.from_numpy(episodes.returns.copy()),
            "lengths": torch.from_numpy(episodes.lengths.copy()),
        }

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Bring all simulators back to where a snapshot was taken.

        Returns:
            Whether they show what they showed then. If not, their draws do not follow from their seeds, and
            their episodes are no continuation.

        Raises:
            EnvironmentFault: If one of them raises an exception.
        """
        episodes = self._episodes
        episodes.seed = None
        self._load_simulators(snapshot["simulators"])
        shown = {key: values.numpy() for key, values in snapshot["shown"].items()}
        returns, lengths = snapshot["returns"].numpy(), snapshot["lengths"].numpy()
        repeated = (
            episodes.shown.keys() == shown.keys()
            and all(np.array_equal(episodes.shown[key], shown[key]) for key in shown)
            and np.array_equal(episodes.lengths, lengths)
        )
        # What they show stays as it lies in memory: a network's sums are made in the order of that.
        episodes.returns, episodes.lengths = returns, lengths
        episodes.restarted = self._none
        return repeated

    def _repeat(self, state: dict[str, Any]) -> None:
        """Reset every simulator with its seed, at its time, and take all actions again."""
        seeds, actions = state["seeds"].numpy(), state["actions"].numpy()
        begins_at = len(actions) - state["steps"].numpy()
        episodes = self._episodes
        everything = np.arange(self.num_envs)
        episodes.begin(slice(None), self._have(self._restart_seeded, everything, seeds))
        discrete = actions.dtype == np.uint8
        for time in range(len(actions) + 1):
            due = np.flatnonzero(begins_at == time)
            if time and len(due):
                self._show_first(due, self._have(self._restart_seeded, due, seeds[due]))
            if time < len(actions):
                action = actions[time].astype(np.int64) if discrete else actions[time]
                self._account(self._have(self._simulate, action))
        if self._history is not None:
            self._history.load(state)

    def _reset_ended(self, step: Step) -> Step:
        if self._episodes.seed is None:
            self._episodes.restarted = self._none
        else:
            self._episodes.restarted = step.done.copy()
            self._begin_again(step.done)
        return step

    def step_and_maybe_reset(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """Step, then reset what ended, as `torchrl.envs.EnvBase.step_and_maybe_reset` does.

        TorchRL's way is general: it looks up, filters and merges nested entries, which takes several times as
        long as a light simulator. Here every entry is a plain tensor and the reset observations are at hand,
        so the same two tensordicts are put together directly. Any other input goes TorchRL's way.

        There is one difference: the second tensordict holds what the environment shows, not what the policy
        wrote in this step, which a policy that only reads observations writes anew before anybody reads it.
        Its ``done``, ``terminated`` and ``truncated`` are all false, and not to be written to in place.
        """
        if not self._is_plain(tensordict):
            return super().step_and_maybe_reset(tensordict)
        following = self._tensordict(_following(self.advance(tensordict.get("action").numpy())))
        # The public setter would check that both have the same batch size and device.
        tensordict._set_str("next", following, inplace=False, validated=True)
        shown = _tensors(self._episodes.shown | self._episodes.totals())
        return tensordict, self._tensordict({**shown, **self._going_on})

    def _is_plain(self, tensordict: TensorDictBase) -> bool:
        return (
            type(tensordict) is TensorDict
            and tensordict.device == _CPU
            and tensordict.batch_size == self.batch_size
            and self._episodes.seed is None
            and "_step" not in tensordict
            and "next" not in tensordict
        )

    def _tensordict(self, entries: dict[str, Tensor]) -> TensorDict:
        # The public constructor checks every entry, which takes longer than a step of CartPole.
        return TensorDict._new_unsafe(source=entries, batch_size=self.batch_size, device=_CPU)

    def _not_done(self) -> dict[str, Tensor]:
        return {key: torch.zeros(self.num_envs, 1, dtype=torch.bool) for key in _DONE_KEYS}


class _Episodes:
    """Where every simulator stands in its episode; its arrays are replaced, never written to."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.seed: int | None = seed
        """Of the next full reset; ``None`` goes on with the simulators' generators."""
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, dtype=np.int64)
        self.shown: Arrays = {}
        """What the next action answers to."""
        self.restarted = np.zeros(num_envs, dtype=np.bool_)
        """Which simulators have begun an episode that TorchRL has not asked for yet."""

    def count(self, reward: NDArray[Any]) -> None:
        """Add a step to the totals."""
        self.returns = self.returns + reward
        self.lengths = self.lengths + 1

    def keep_finite(self) -> None:
        """Keep returns within float32, which they are handed out in."""
        self.returns = np.clip(self.returns, -_LARGEST, _LARGEST)

    def begin(self, rows: Any, shown: Arrays) -> None:
        """Begin episodes in some rows, given what every simulator shows then."""
        self.returns, self.lengths = self.returns.copy(), self.lengths.copy()
        self.returns[rows] = 0
        self.lengths[rows] = 0
        self.shown = shown

    def totals(self) -> Arrays:
        return _totals(self.returns, self.lengths)


def _totals(returns: NDArray[np.float64], lengths: NDArray[np.int64]) -> Arrays:
    return {"episode_return": returns.astype(np.float32)[:, None], "episode_length": lengths[:, None].copy()}


def _following(step: Step) -> dict[str, Tensor]:
    """Return what belongs under ``next``."""
    return {
        **_tensors(step.observations),
        **_tensors(_totals(step.episode_return, step.episode_length)),
        "reward": _column(step.reward.astype(np.float32, copy=False)),
        "done": _column(step.done),
        "terminated": _column(step.terminated),
        "truncated": _column(step.truncated),
    }


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {key: torch.from_numpy(values) for key, values in arrays.items()}


def _column(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values[:, None])
