"""Against a loop over the whole stream, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from lit_gfs.buffers.frame_stacks import FrameStackStorage
from lit_gfs.buffers.ring import RingStorage
from lit_gfs.buffers.transitions import TransitionStorage
from lit_gfs.errors import UserError
from lit_gfs.functional.returns import n_step_return
from support.streams import StackStream, VectorStream

GAMMA = 0.9


def make(name: str, n_step: int, num_envs: int, seed: int) -> tuple[RingStorage, VectorStream]:
    if name == "vectors":
        return TransitionStorage(12 * num_envs, n_step), VectorStream(num_envs, seed, lives=True)
    storage = FrameStackStorage(12 * num_envs, num_envs, episode_slack=0.5, n_step=n_step)
    return storage, StackStream(num_envs, seed, lives=True)


def by_loop(
    stream: VectorStream, number: int, n_step: int, cut: set[int], lives_count: bool
) -> tuple[float, float, torch.Tensor, bool]:
    """Return the sum of discounted rewards, the discount, the observation after it, and if it is terminal."""
    num_envs = stream.num_envs
    step, env = divmod(number, num_envs)
    total, discount = 0.0, 1.0
    for k in range(n_step):
        outcome = stream.seen[step + k]["next"][env]
        total += discount * outcome["reward"].item()
        discount *= GAMMA
        if outcome["terminated"].item() or (lives_count and outcome["end_of_life"].item()):
            return total, 0.0, outcome["observation"], True
        if outcome["done"].item() or step + k in cut or step + k + 1 == len(stream.seen):
            break
    return total, discount, outcome["observation"], False


@pytest.mark.parametrize("lives_count", [False, True])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("n_step", [2, 3, 5])
@pytest.mark.parametrize("name", ["vectors", "frames"])
def test_outcomes_are_those_of_a_loop_over_the_episodes(
    name: str, n_step: int, num_envs: int, lives_count: bool
) -> None:
    storage, stream = make(name, n_step, num_envs, seed=n_step)
    cut: set[int] = set()
    # The ring is overtaken several times, by rollouts of all lengths, once by one larger than itself.
    for steps in (1, 1, 4, 2, 7, 1, 3, 13, 2, 5):
        storage.extend(stream.rollout(steps))
        if steps == 7:
            storage.end_episodes()
            cut.add(len(stream.seen) - 1)
            stream.begin()
        assert_right(storage, stream, n_step, cut, lives_count)


def assert_right(
    storage: RingStorage, stream: VectorStream, n_step: int, cut: set[int], lives_count: bool
) -> None:
    batch = storage.get(torch.arange(len(storage)))
    plain = stream.expected(batch["action"])
    assert torch.equal(batch["observation"], plain["observation"])
    assert batch["next", "reward"].shape == (len(batch), n_step)
    value, terminated, discount = n_step_return(batch["next"], GAMMA, end_of_life_is_terminal=lives_count)
    for row, number in enumerate(batch["action"].tolist()):
        expected = by_loop(stream, number, n_step, cut, lives_count)
        assert value[row].item() == pytest.approx(expected[0], abs=1e-5)
        assert terminated[row].item() == expected[3]
        if not terminated[row]:
            assert discount[row].item() == pytest.approx(expected[1])
            assert torch.equal(batch["next", "observation"][row], expected[2])


@pytest.mark.parametrize("name", ["vectors", "frames"])
def test_a_restored_storage_goes_on_with_the_same_outcomes(name: str) -> None:
    storage, stream = make(name, 3, 2, seed=0)
    parts = []
    for steps in (5, 1, 9, 2):
        first = storage.row_count
        storage.extend(stream.rollout(steps))
        # As shards on the disk: each row is copied once, when it is new.
        parts.append(storage.rows(max(first, storage.first_row), storage.row_count))
    restored, _ = make(name, 3, 2, seed=0)
    needed = [rows for rows in parts if rows["numbers"][1] > storage.first_row]

    restored.restore(storage.sizes(), storage.position(), needed)

    for steps in (0, 1, 6, 2):
        if steps:
            further = stream.rollout(steps)
            storage.extend(further)
            restored.extend(further)
        one, other = (each.get(slice(None)) for each in (storage, restored))
        assert (one == other).all()
        assert_right(restored, stream, 3, set(), False)


def test_rewards_are_clipped_before_they_are_summed() -> None:
    next_ = TensorDict(
        {
            "reward": torch.tensor([[4.0, 0.5, -3.0]]),
            "done": torch.zeros(1, 3, dtype=torch.bool),
            "terminated": torch.zeros(1, 3, dtype=torch.bool),
            "steps": torch.tensor([[3]]),
        },
        [1],
    )

    value, terminated, discount = n_step_return(next_, 0.5, clip=True)

    assert value.tolist() == [1 + 0.25 - 0.25]
    assert terminated.tolist() == [False]
    assert discount.tolist() == [0.125]


def test_one_step_is_the_reward() -> None:
    columns: dict[str, Any] = {
        "reward": torch.tensor([[2.0], [3.0]]),
        "done": torch.tensor([[True], [False]]),
        "terminated": torch.tensor([[True], [False]]),
    }

    value, terminated, discount = n_step_return(TensorDict(columns, [2]), 0.9, scale=0.5)

    assert value.tolist() == [1.0, 1.5]
    assert terminated.tolist() == [True, False]
    torch.testing.assert_close(discount, torch.full((2,), 0.9))


@pytest.mark.parametrize("name", ["vectors", "frames"])
def test_an_index_may_have_any_shape(name: str) -> None:
    storage, stream = make(name, 3, 2, seed=0)
    storage.extend(stream.rollout(6))
    everything = storage.get(slice(None))

    assert (storage.get(4) == everything[4]).all()
    assert (storage.get(torch.tensor([[1, 2], [7, 0]])) == everything[torch.tensor([[1, 2], [7, 0]])]).all()


def test_single_steps_take_no_memory_for_links() -> None:
    storage, stream = TransitionStorage(20), VectorStream(2, 0)
    storage.extend(stream.rollout(3))

    assert "previous" not in storage.rows(0, 6)
    assert "steps" not in storage.get(0)["next"]
    with pytest.raises(UserError, match="n_step is 0; expected a whole number of at least 1"):
        TransitionStorage(20, 0)
