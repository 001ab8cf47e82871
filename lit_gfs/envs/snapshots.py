"""Snapshots of a batch of simulators, which bring them back in this process or in another."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lit_gfs.envs.history import History
from lit_gfs.envs.simulators import Simulators


class RestorableSimulators(Simulators):
    """Simulators whose state a snapshot holds.

    A suite that can copy the state of its simulators overrides `_save_simulators` and `_load_simulators`. For
    all others, the snapshot holds a `History`, and restoring it takes the actions since the last seeded reset
    again.
    """

    steps_per_seed: ClassVar[int] = 1_000
    """Steps after which the next episode of a simulator begins with a new seed, see `History`."""

    # -- for suites to override --------------------------------------------------------------------------

    @property
    def is_repeatable(self) -> bool:
        """Whether the simulators repeat themselves, given the same seeds and actions."""
        return True

    def _save_simulators(self) -> dict[str, Any] | None:
        """Return the state of the simulators as tensors and plain data; ``None`` if it is not known."""
        return None if self._history is None else self._history.state()

    def _load_simulators(self, state: dict[str, Any]) -> None:
        """Restore the simulators, and with them the observations and lengths of `_episodes`."""
        self._repeat(state)

    # -- snapshots ---------------------------------------------------------------------------------------

    def keep_history(self) -> None:
        """Prepare for `snapshot`; call this before the first reset."""
        if self.is_repeatable and not self._saves_arrays:
            self._history = History(self.num_envs, self.steps_per_seed)

    @property
    def _saves_arrays(self) -> bool:
        return type(self)._save_simulators is not RestorableSimulators._save_simulators

    @property
    def is_restorable(self) -> bool:
        """Whether `snapshot` works, once the simulators have been reset."""
        if self._history is None:
            return self._saves_arrays
        return self._history.is_complete or not self._episodes.observations

    def snapshot(self) -> dict[str, Any] | None:
        """Return the state of all simulators and their episodes, between two steps.

        Returns:
            Tensors and plain data; ``None`` if these simulators cannot be restored.
        """
        episodes = self._episodes
        if not episodes.observations or episodes.seed is not None:
            return None
        simulators = self._save_simulators()
        if simulators is None:
            return None
        return {
            "simulators": simulators,
            # Checkpoints have this key.
            "shown": {key: torch.from_numpy(values.copy()) for key, values in episodes.observations.items()},
            "returns": torch.from_numpy(episodes.returns.copy()),
            "lengths": torch.from_numpy(episodes.lengths.copy()),
        }

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Bring all simulators back to the state of a snapshot.

        Returns:
            Whether their observations are the same as then. If not, the simulators do not repeat themselves
            from their seeds, and their episodes do not continue the earlier ones.

        Raises:
            EnvironmentFault: If a simulator raises an exception.
        """
        episodes = self._episodes
        episodes.seed = None
        self._load_simulators(snapshot["simulators"])
        saved = {key: values.numpy() for key, values in snapshot["shown"].items()}
        returns, lengths = snapshot["returns"].numpy(), snapshot["lengths"].numpy()
        is_same = (
            episodes.observations.keys() == saved.keys()
            and all(np.array_equal(episodes.observations[key], saved[key]) for key in saved)
            and np.array_equal(episodes.lengths, lengths)
        )
        # The simulators' own observations stay: saved ones may be laid out differently in memory, and a
        # network's sums follow that order.
        episodes.returns, episodes.lengths = returns, lengths
        episodes.already_reset = self._nowhere
        return is_same

    def _repeat(self, state: dict[str, Any]) -> None:
        """Reset every simulator with its seed at the step of that reset, and take all actions again."""
        seeds, actions = state["seeds"].numpy(), state["actions"].numpy()
        reset_at = len(actions) - state["steps"].numpy()
        everything = np.arange(self.num_envs)
        # All simulators need a state from the start, also those whose own reset comes later.
        first = self._guarded(self._restart_seeded, everything, seeds)
        self._episodes.begin(slice(None), first)
        for time in range(len(actions) + 1):
            due = np.flatnonzero(reset_at == time)
            if time and len(due):
                self._replace_observations(due, self._guarded(self._restart_seeded, due, seeds[due]))
            if time < len(actions):
                self._counted(self._guarded(self._simulate, _unpacked(actions[time])))
        if self._history is not None:
            self._history.load(state)


def _unpacked(action: NDArray[Any]) -> NDArray[Any]:
    """Return an action as the simulators take it: a history stores discrete ones as bytes."""
    return action.astype(np.int64) if action.dtype == np.uint8 else action
