"""A batch of simulators that are stepped together, in NumPy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lit_gfs.envs.activity import Activity, Misconduct
from lit_gfs.envs.checks import are_ordinary, require_finite, require_usable
from lit_gfs.envs.episodes import Arrays, Episodes, Outcome, Step
from lit_gfs.envs.history import History
from lit_gfs.errors import STOPS, EnvironmentFault, UserError, in_one_line

_Result = TypeVar("_Result")


def env_seeds(seed: int, num_envs: int) -> NDArray[np.int64]:
    """Derive one seed in ``[0, 2**31)`` per environment, all of them different."""
    first = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return (first + np.arange(num_envs)) % 2**31


class Simulators(ABC):
    """Steps ``num_envs`` simulators; the step that ends an episode also begins the next one.

    Suites implement `_simulate` and `_restart`, and where they can, the methods that follow these two.

    Args:
        env_id: The id of the environment, for messages.
        num_envs: Number of simulators.
        floating: Names of the observations of floating point, which must be finite.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
    """

    def __init__(self, env_id: str, num_envs: int, floating: Iterable[str], seed: int | None) -> None:
        self.env_id = env_id
        self.num_envs = num_envs
        self.activity = Activity()
        self._floating = list(floating)
        first_seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._episodes = Episodes(num_envs, first_seed)
        self._nowhere = np.zeros(num_envs, dtype=np.bool_)
        self._history: History | None = None

    # -- for suites to implement -------------------------------------------------------------------------

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
            indices: The simulators to restart; all of them, in order, if there is a seed.
            seed: Determines everything that follows; ``None`` goes on with the simulators' generators.

        Returns:
            The first observations, by name, one row per index.
        """

    def _restart_seeded(self, indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> Arrays:
        """Begin new episodes, each a function of its own seed and actions.

        Args:
            indices: The simulators to restart.
            seeds: One seed for each of them.

        Returns:
            The first observations, by name, one row per index.
        """
        raise NotImplementedError(f"{type(self).__name__} seeds all simulators at once")

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated; ``None`` where that is not known."""
        return None

    def _send(self, action: NDArray[Any]) -> None:  # noqa: B027
        """Give every simulator its action without waiting, where simulators have threads of their own.

        The action is also in ``self._sent``.
        """

    def _receive(self) -> Outcome:
        """Return the outcome of the actions that were sent."""
        return self._simulate(self._sent)

    # -- stepping ----------------------------------------------------------------------------------------

    @property
    def observations(self) -> Arrays:
        """The observations that the next action answers to, by name; empty before the first reset."""
        return self._episodes.observations

    @property
    def open_episodes(self) -> int:
        """Number of episodes that have taken a step and have not ended."""
        return int(np.count_nonzero(self._episodes.lengths))

    def advance(self, action: NDArray[Any]) -> Step:
        """Step every simulator, then reset where episodes ended: `step_and_maybe_reset` in NumPy.

        Afterwards, `observations` holds what the next action answers to.

        Args:
            action: ``(num_envs,)`` int64 or ``(num_envs, dim)`` float32.
        """
        return self._reset_ended(self._step_all(action))

    def begin(self, action: NDArray[Any]) -> None:
        """Begin the step that `advance` takes, and do not wait for it: `finish` does.

        Simulators with threads of their own (Atari) step in the meantime. A full reset drops the step.

        Args:
            action: ``(num_envs,)`` int64 or ``(num_envs, dim)`` float32.
        """
        self._sent = action
        self._guarded(self._send, action)

    def finish(self) -> Step:
        """Wait for the step that was begun, and return it."""
        return self._reset_ended(self._recorded(self._counted(self._guarded(self._receive))))

    def _step_all(self, action: NDArray[Any]) -> Step:
        self._sent = action
        return self._recorded(self._counted(self._guarded(self._simulate, action)))

    def _guarded(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Call a method of the suite, note it in `activity`, and turn its exceptions into faults.

        Raises:
            EnvironmentFault: If a simulator raises an exception, or asks for the process to end.
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

    def _counted(self, outcome: Outcome) -> Step:
        """Add a step to the episodes, and begin the next episode where one ended.

        Raises:
            EnvironmentFault: If an observation or a reward is not finite.
        """
        require_finite(self.env_id, outcome.observations, self._floating)
        episodes = self._episodes
        ended = outcome.terminated | outcome.truncated
        is_ordinary = are_ordinary(outcome.reward)
        if not is_ordinary:
            require_usable(self.env_id, outcome.reward, episodes.lengths)
        episodes.count(outcome.reward)
        if not is_ordinary:
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
        episodes.observations = outcome.observations
        if outcome.restarted is None:
            self._begin_episodes(np.flatnonzero(ended))
        else:
            episodes.begin(ended, outcome.restarted)
        return step

    def _recorded(self, step: Step) -> Step:
        """Add the action to the history; where a new seed is due, begin the next episode with it."""
        history = self._history
        if history is not None:
            history.record(self._sent)
            due = history.due(step.done)
            if len(due):
                self._begin_seeded_episodes(due, history.next_seeds(due))
        return step

    # -- beginning episodes ------------------------------------------------------------------------------

    def _reset_ended(self, step: Step) -> Step:
        """Do what TorchRL's reset after a step would: only a new seed leaves something to do."""
        if self._episodes.seed is None:
            self._episodes.already_reset = self._nowhere
        else:
            self._episodes.already_reset = step.done.copy()
            self._reset_where(step.done)
        return step

    def _reset_all(self) -> None:
        """Begin a new episode in every simulator, from the seed if there is a new one."""
        episodes, history = self._episodes, self._history
        everything = np.arange(self.num_envs)
        if history is None or episodes.seed is not None:
            first = self._guarded(self._restart, everything, episodes.seed)
        else:
            seeds = history.next_seeds(everything)
            first = self._guarded(self._restart_seeded, everything, seeds)
            history.begin_all(seeds)
        if history is not None and episodes.seed is not None:
            history.begin_all(env_seeds(episodes.seed, self.num_envs))
        episodes.begin(slice(None), first)
        episodes.seed = None
        episodes.already_reset = self._nowhere

    def _reset_where(self, mask: NDArray[np.bool_]) -> None:
        """Begin a new episode where the mask is true, unless the latest step has begun one there."""
        episodes = self._episodes
        if episodes.seed is not None and mask.all():
            self._reset_all()
            return
        indices = np.flatnonzero(mask & ~episodes.already_reset)
        if self._history is None or len(indices) == 0:
            self._begin_episodes(indices)
        else:
            # This cuts episodes at any time. The next ones must not depend on that time: they get new seeds.
            self._begin_seeded_episodes(indices, self._history.next_seeds(indices))
        episodes.already_reset = episodes.already_reset & ~mask

    def _begin_episodes(self, indices: NDArray[np.int64]) -> None:
        if len(indices) > 0:
            self._replace_observations(indices, self._guarded(self._restart, indices, None))

    def _begin_seeded_episodes(self, indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        self._replace_observations(indices, self._guarded(self._restart_seeded, indices, seeds))
        if self._history is not None:
            self._history.begin(indices, seeds)

    def _replace_observations(self, indices: NDArray[np.int64], first: Arrays) -> None:
        """Put the first observations of new episodes in place, one row per index."""
        # Copies: callers hold the earlier arrays.
        observations = {key: self._episodes.observations[key].copy() for key in first}
        for key, rows in first.items():
            observations[key][indices] = rows
        self._episodes.begin(indices, observations)
