"""TorchRL's replay buffer around storages that append whole rollouts and have all the state."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import RandomSampler, ReplayBuffer, Writer
from torchrl.data.replay_buffers.storages import Storage


class AppendingStorage(Protocol):
    """A storage to which rollouts are appended."""

    @property
    def write_count(self) -> int:
        """Number of transitions appended so far."""

    def extend(self, rollout: TensorDictBase) -> Tensor:
        """Append a rollout ``(num_envs, T)`` and return the indices of its transitions."""


class RolloutWriter(Writer):
    """Appends rollouts ``(num_envs, T)`` to an :class:`AppendingStorage`, which has all the state."""

    def extend(self, data: TensorDictBase) -> Tensor:
        """Append a rollout; see the storage's ``extend``."""
        return cast(AppendingStorage, self._storage).extend(data)

    def add(self, data: Any) -> int:
        """Refuse a single transition: environments are stepped together.

        Raises:
            TypeError: Always.
        """
        raise TypeError("transitions cannot be added one by one; extend with a rollout (num_envs, T)")

    @property
    def _write_count(self) -> int:
        return cast(AppendingStorage, self._storage).write_count

    def _empty(self, empty_write_count: bool = True) -> None:
        pass

    # TorchRL requires these methods of every writer. This one has no state.

    def dumps(self, path: str | Path) -> None:
        """Write nothing."""

    def loads(self, path: str | Path) -> None:
        """Read nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state."""


class RolloutReplay(ReplayBuffer):
    """A replay buffer without transforms, for one process: sampling takes half of the time."""

    def _sample(self, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """Draw transitions, as TorchRL's buffer does between its locks."""
        index, info = self._sampler.sample(self._storage, batch_size)
        return self._storage.get(index), {**info, "index": index}


def uniform_replay_buffer(storage: Storage, batch_size: int) -> ReplayBuffer:
    """Make a replay buffer that samples uniformly, with torch's global generator.

    Args:
        storage: An :class:`AppendingStorage`.
        batch_size: Transitions in a sample.

    Returns:
        A buffer whose ``extend`` takes rollouts ``(num_envs, T)`` and whose ``sample`` gives
        ``(batch_size,)``.
    """
    return RolloutReplay(
        storage=storage,
        sampler=RandomSampler(),
        writer=RolloutWriter(),
        collate_fn=unchanged,
        batch_size=batch_size,
    )


def unchanged(batch: TensorDict) -> TensorDict:
    """Collate nothing: a storage of this package already returns a batch."""
    return batch
