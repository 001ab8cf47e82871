"""Against TorchRL's own storage, fed with the same transitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, ReplayBuffer, TensorDictReplayBuffer

from lit_gfs.buffers.transitions import TransitionStorage
from lit_gfs.buffers.writer import uniform_replay_buffer
from lit_gfs.errors import UserError


def make_rollout(num_envs: int, steps: int, seed: int, **extra: Any) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    batch = [num_envs, steps]

    def flag() -> torch.Tensor:
        return torch.rand(*batch, 1, generator=generator) < 0.3

    return TensorDict(
        {
            "observation": torch.randn(*batch, 3, generator=generator),
            "action": torch.randint(5, batch, generator=generator),
            "next": TensorDict(
                {
                    "observation": torch.randn(*batch, 3, generator=generator),
                    "reward": torch.randn(*batch, 1, generator=generator),
                    "done": flag(),
                    "terminated": flag(),
                    "truncated": flag(),
                    **extra,
                },
                batch,
            ),
        },
        batch,
    )


def assert_same(mine: TensorDictBase, theirs: TensorDictBase) -> None:
    theirs = theirs.exclude("index")
    assert mine.batch_size == theirs.batch_size
    assert set(mine.keys(True, True)) == set(theirs.keys(True, True))
    for key in theirs.keys(True, True):
        assert mine[key].dtype == theirs[key].dtype
        assert torch.equal(mine[key], theirs[key])


@pytest.mark.parametrize("lost_lives", [False, True])
@pytest.mark.filterwarnings("ignore:A cursor of length")
def test_samples_equal_those_of_torchrls_storage(lost_lives: bool) -> None:
    mine: ReplayBuffer = uniform_replay_buffer(TransitionStorage(50), 16)
    theirs = TensorDictReplayBuffer(storage=LazyTensorStorage(50), batch_size=16)
    # The ring is overtaken several times, in the end by a rollout larger than itself.
    for number, (num_envs, steps) in enumerate([(2, 3), (2, 3), (4, 9), (1, 1), (4, 9), (4, 20), (3, 1)]):
        extra = {"end_of_life": torch.rand(num_envs, steps, 1) < 0.5} if lost_lives else {}
        rollout = make_rollout(num_envs, steps, number, **extra)
        # Other keys of the collector are dropped.
        mine.extend(rollout.clone().set("value", torch.zeros(num_envs, steps)))
        theirs.extend(rollout.reshape(-1))
        assert len(mine) == len(theirs)
        assert mine.write_count == theirs.write_count
        assert_same(mine[:], theirs[:])
        samples = []
        for buffer in (mine, theirs):
            torch.manual_seed(number)
            samples.append(buffer.sample())
        assert_same(*samples)


def test_samples_are_copies_and_so_is_what_is_stored() -> None:
    storage = TransitionStorage(10)
    rollout = make_rollout(1, 4, 0)
    storage.extend(rollout)
    expected = rollout.clone().reshape(-1)
    rollout["observation"].zero_()
    sample = storage.get(torch.arange(4))
    assert_same(sample, expected)
    sample["next", "reward"].zero_()
    assert_same(storage.get(torch.arange(4)), expected)


def test_indices_of_any_shape() -> None:
    storage = TransitionStorage(10)
    rollout = make_rollout(2, 3, 0)
    assert storage.extend(rollout).tolist() == [0, 1, 2, 3, 4, 5]
    assert storage.extend(rollout).tolist() == [6, 7, 8, 9, 0, 1]
    flat = rollout.reshape(-1)
    assert_same(storage.get(2), flat[2])
    index = torch.tensor([[6, 9], [0, 3]])
    assert_same(storage.get(index), flat[torch.tensor([[0, 3], [4, 3]])])


@pytest.mark.parametrize("index", [-1, 6])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    storage = TransitionStorage(10)
    storage.extend(make_rollout(2, 3, 0))
    assert storage.contains(torch.tensor([0, 5, 6])).tolist() == [True, True, False]  # type: ignore[union-attr]
    with pytest.raises(IndexError, match="expected 0 to 5"):
        storage.get(torch.tensor([0, index]))


def test_writing_at_an_index_is_refused() -> None:
    with pytest.raises(TypeError, match="use extend"):
        TransitionStorage(10).set(0, None)


def test_a_storage_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="capacity is 0"):
        TransitionStorage(0)


def test_emptying() -> None:
    buffer: ReplayBuffer = uniform_replay_buffer(TransitionStorage(20), 4)
    buffer.extend(make_rollout(2, 3, 0))
    buffer.empty()
    assert len(buffer) == 0
    buffer.extend(make_rollout(1, 2, 1))
    assert_same(buffer[:], make_rollout(1, 2, 1).reshape(-1))
