"""Transitions that were collected before: the replay memory of a run, or a data set of Minari."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from lit_gfs.buffers.ring import RingStorage
from lit_gfs.buffers.shards import ReplayShards, find_replay
from lit_gfs.buffers.transitions import TransitionStorage
from lit_gfs.datamodules.replay import make_replay_buffer
from lit_gfs.envs import EnvSpec
from lit_gfs.envs.activity import Misconduct
from lit_gfs.envs.spaces import Observation, read_observation
from lit_gfs.errors import UserError, nearest
from lit_gfs.runs.checkpoints import find_checkpoint
from lit_gfs.utils.checksummed_files import read_checksummed

MINARI = "minari:"
"""Beginning of the sources that are data sets of Minari."""

_PART = 4096
"""Transitions that are read at a time, where all of them are."""


class Transitions:
    """All transitions of one or several memories, drawn uniformly.

    Args:
        storages: The memories; a run of several processes has one for each.

    Raises:
        UserError: If there are none.
    """

    def __init__(self, storages: list[RingStorage]) -> None:
        self._storages = storages
        self._ends = torch.tensor([len(storage) for storage in storages]).cumsum(0)
        if not len(self):
            raise UserError("data.source holds no transitions; expected at least one")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def sample(self, batch_size: int, generator: torch.Generator) -> TensorDict:
        """Draw transitions with replacement.

        Args:
            batch_size: Number of transitions.
            generator: Where the draws come from.

        Returns:
            ``(batch_size,)`` with the keys of `ReplayDataModule`'s batches.
        """
        chosen = torch.randint(len(self), (batch_size,), generator=generator)
        if len(self._storages) == 1:
            return self._storages[0].get(chosen)
        owner = torch.searchsorted(self._ends, chosen, right=True)
        starts = self._ends - torch.tensor([len(storage) for storage in self._storages])
        parts = [
            storage.get(chosen[owner == index] - starts[index])
            for index, storage in enumerate(self._storages)
            if (owner == index).any()
        ]
        return torch.cat(parts)

    def observations(self) -> Iterator[Tensor]:
        """Yield the observations of all transitions, in parts ``(part, *shape)``."""
        for storage in self._storages:
            for first in range(0, len(storage), _PART):
                yield storage.get(slice(first, first + _PART))["observation"]


def load_transitions(source: str, spec: EnvSpec) -> Transitions:
    """Load the transitions that a user names.

    Args:
        source: A checkpoint of a run that learned from replay, or its directory; or ``minari:<id>``.
        spec: The spaces of the environment, which the transitions must fit.

    Raises:
        UserError: If there are no such transitions, or they are those of another environment.
    """
    if source.startswith(MINARI):
        return Transitions([read_minari(source.removeprefix(MINARI), spec)])
    return Transitions(read_run(find_checkpoint(source, option="data.source"), spec))


def read_run(checkpoint: Path, spec: EnvSpec) -> list[RingStorage]:
    """Read the replay memories of all processes of a run.

    Raises:
        UserError: If the checkpoint has none, or the environment is another one.
    """
    state = read_checksummed(checkpoint).get("ReplayDataModule", {})
    if "replay" not in state:
        raise UserError(
            f"data.source {str(checkpoint)!r} has no transitions; expected last.ckpt of a run with "
            "lit_gfs.datamodules.ReplayDataModule"
        )
    settings = state["settings"]
    if settings["env_id"] != spec.env_id:
        raise UserError(
            f"data.env_id is {spec.env_id}, but the transitions of data.source are of {settings['env_id']}; "
            "expected the same"
        )
    storages: list[RingStorage] = []
    for rank, manifest in enumerate(state["replay"]):
        envs = settings["num_envs"] * max(1, settings.get("remote_collectors", 0))
        storage: Any = make_replay_buffer(spec, settings["buffer_size"], envs, 1).storage
        ReplayShards(find_replay(checkpoint, rank)).load(storage, manifest)
        storages.append(storage)
    return storages


def read_minari(dataset_id: str, spec: EnvSpec) -> TransitionStorage:
    """Read a data set of Minari from the disk; nothing is downloaded.

    Observations are converted as those of a gymnasium environment. The last step of an episode is a
    termination or a truncation, as the data set says.

    Args:
        dataset_id: Such as ``minigrid/BabyAI-Pickup/optimal-v0``.
        spec: The spaces of the environment, which the data set must fit.

    Raises:
        UserError: If Minari is not installed, or there is no such data set with discrete actions.
    """
    minari = _import_minari()
    try:
        dataset = minari.load_dataset(dataset_id)
    except (FileNotFoundError, ValueError) as error:
        local = list(minari.list_local_datasets())
        known = f"one of {', '.join(local)}" if local else "one that `minari download` has fetched"
        raise UserError(
            f"data.source names the data set {dataset_id!r}, which is not on this machine; expected {known}"
            f"{nearest(dataset_id, local)}"
        ) from error
    observation = read_observation(spec.env_id, dataset.observation_space)
    count, first = getattr(dataset.action_space, "n", None), getattr(dataset.action_space, "start", 0)
    if observation.shape != spec.observation_shape or count is None or count != spec.num_actions:
        raise UserError(
            f"the data set {dataset_id!r} has observations of {tuple(observation.shape)} and the actions "
            f"{dataset.action_space}; expected {spec.observation_shape} and {spec.num_actions} discrete "
            f"actions, as {spec.env_id} has"
        )
    storage = TransitionStorage(int(dataset.total_steps))
    for episode in dataset.iterate_episodes():
        seen = _rows(episode.observations, observation)
        storage.extend(_as_rollout(episode, seen, np.asarray(episode.actions) - first))
    return storage


def _as_rollout(episode: Any, seen: Tensor, action: NDArray[Any]) -> TensorDict:
    """Return an episode of T steps as a rollout ``(1, T)``, from its T + 1 observations."""
    terminated, truncated = (np.asarray(ends, bool) for ends in (episode.terminations, episode.truncations))
    columns = {
        "reward": np.asarray(episode.rewards, np.float32),
        "done": terminated | truncated,
        "terminated": terminated,
        "truncated": truncated,
    }
    next_ = {name: torch.from_numpy(column)[None, :, None] for name, column in columns.items()}
    size = [1, len(action)]
    return TensorDict(
        {
            "observation": seen[None, :-1],
            "action": torch.from_numpy(action.astype(np.int64))[None],
            "next": TensorDict({"observation": seen[None, 1:], **next_}, batch_size=size),
        },
        batch_size=size,
    )


def _rows(observations: Any, conversion: Observation) -> Tensor:
    """Convert the observations of an episode, ``(T + 1, *shape)``."""
    parts = _split(observations)
    rows = torch.zeros((len(parts), *conversion.shape), dtype=conversion.dtype)
    try:
        for row, observed in zip(rows.numpy(), parts, strict=True):
            conversion.write(observed, row)
    except Misconduct as error:
        raise UserError(f"an episode of data.source {error}") from error
    return rows


def _split(observations: Any) -> list[Any]:
    """Return a list of observations; Minari stores nested spaces as dictionaries and tuples of arrays."""
    if isinstance(observations, dict):
        names = list(observations)
        columns = [_split(observations[name]) for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    if isinstance(observations, tuple):
        return list(zip(*map(_split, observations), strict=True))
    return list(observations)


def _import_minari() -> Any:
    try:
        import minari  # takes a second
    except ImportError as error:
        raise UserError(
            "data.source names a data set of Minari, which is not installed; expected "
            "`pip install 'lit-gfs[offline]'`"
        ) from error
    return minari
