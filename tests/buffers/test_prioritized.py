from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tensordict import TensorDict

from lit_gfs.buffers.frame_stacks import FrameStackStorage
from lit_gfs.buffers.prioritized import PrioritizedSampler, prioritized_replay_buffer
from lit_gfs.buffers.ring import RingStorage
from lit_gfs.buffers.transitions import TransitionStorage
from support.streams import StackStream, VectorStream

ALPHA = 0.6


def make_buffer(storage: RingStorage, batch_size: int = 8, alpha: float = ALPHA, beta: float = 0.4) -> Any:
    return prioritized_replay_buffer(
        storage, batch_size, PrioritizedSampler(storage.max_size, alpha, lambda: beta)
    )


def set_priorities(buffer: Any, priorities: dict[int, float]) -> None:
    """Give transitions, named by their ``action``, priorities by way of samples; all others get 1."""
    for _ in range(400):
        actions = buffer.sample()["action"].tolist()
        buffer.update_priorities(torch.tensor([priorities.get(action, 1.0) for action in actions]))


def test_transitions_are_drawn_by_their_priorities() -> None:
    torch.manual_seed(0)
    buffer = make_buffer(TransitionStorage(10))
    buffer.extend(VectorStream(2, seed=0).rollout(5))
    priorities = np.array([0.5, 1, 2, 4, 8, 0.1, 3, 0.0, 1, 7])
    set_priorities(buffer, dict(enumerate(priorities)))

    drawn = np.concatenate([buffer.sample()["action"].numpy() for _ in range(2_000)])

    expected = (priorities + 1e-6) ** ALPHA
    counts = np.bincount(drawn, minlength=10)
    likely = expected > 0.1  # the one with a priority of almost 0 is hardly ever drawn
    assert (
        chisquare(counts[likely], expected[likely] / expected[likely].sum() * counts[likely].sum()).pvalue
        > 0.01
    )
    assert counts[7] < 20


def test_an_exponent_of_zero_draws_uniformly() -> None:
    torch.manual_seed(0)
    buffer = make_buffer(TransitionStorage(10), alpha=0.0)
    buffer.extend(VectorStream(2, seed=0).rollout(5))
    set_priorities(buffer, {0: 1e3, 1: 1e-3})

    drawn = np.concatenate([buffer.sample()["action"].numpy() for _ in range(1_000)])

    assert chisquare(np.bincount(drawn, minlength=10)).pvalue > 0.01
    assert torch.equal(buffer.sample()["weight"], torch.ones(8))


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights_by_hand(beta: float) -> None:
    torch.manual_seed(0)
    buffer = make_buffer(TransitionStorage(4), batch_size=64, beta=beta)
    buffer.extend(VectorStream(2, seed=0).rollout(2))
    priorities = np.array([1.0, 2.0, 5.0, 10.0])
    set_priorities(buffer, dict(enumerate(priorities)))

    batch = buffer.sample()

    share = (priorities + 1e-6) ** ALPHA / ((priorities + 1e-6) ** ALPHA).sum()
    weight = (1 / (4 * share)) ** beta
    drawn = batch["action"].numpy()
    assert set(drawn) == {0, 1, 2, 3}
    np.testing.assert_allclose(batch["weight"].numpy(), weight[drawn] / weight[drawn].max(), rtol=1e-5)
    assert batch["weight"].dtype == torch.float32


def test_weights_of_one_make_the_mean_of_any_quantity_unbiased() -> None:
    torch.manual_seed(0)
    buffer = make_buffer(TransitionStorage(10), batch_size=10, beta=1.0)
    buffer.extend(VectorStream(2, seed=0).rollout(5))
    priorities = np.linspace(0.2, 3, 10)
    set_priorities(buffer, dict(enumerate(priorities)))

    total = weights = 0.0
    for _ in range(2_000):
        batch = buffer.sample()
        # Undo the division by the largest weight of the batch.
        weight = batch["weight"] / (priorities[batch["action"].numpy()] ** ALPHA).min()
        total += float((weight * batch["action"]).sum())
        weights += float(weight.sum())
    assert total / weights == pytest.approx(np.arange(10).mean(), rel=0.03)


def test_new_transitions_have_the_largest_priority_so_far() -> None:
    torch.manual_seed(0)
    buffer = make_buffer(TransitionStorage(8), alpha=1.0)
    stream = VectorStream(2, seed=0)
    buffer.extend(stream.rollout(2))
    buffer.sample()
    buffer.update_priorities(torch.tensor([0.5, 0.5, 0.5, 20.0, 0.5, 0.5, 0.5, 0.5]))
    buffer.sample()
    buffer.update_priorities(torch.full((8,), 0.25))
    buffer.extend(stream.rollout(2))

    priorities = buffer.priorities_state()["priorities"]

    assert priorities[4:].tolist() == pytest.approx([20.0] * 4)
    assert max(priorities[:4]) <= 20.001


def test_new_transitions_have_the_largest_priority_of_the_update_just_before() -> None:
    torch.manual_seed(0)
    buffer = make_buffer(TransitionStorage(8), alpha=1.0)
    stream = VectorStream(2, seed=0)
    buffer.extend(stream.rollout(2))
    buffer.sample()
    buffer.update_priorities(torch.full((8,), 20.0))
    buffer.extend(stream.rollout(2))

    assert buffer.priorities_state()["priorities"][4:].tolist() == pytest.approx([20.0] * 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_priority_that_is_not_finite_counts_as_the_largest(bad: float) -> None:
    torch.manual_seed(0)
    buffer = make_buffer(TransitionStorage(4), alpha=1.0)
    buffer.extend(VectorStream(2, seed=0).rollout(2))
    buffer.sample()

    buffer.update_priorities(torch.full((8,), bad))

    assert buffer.priorities_state()["priorities"].tolist() == pytest.approx([1.0] * 4)
    assert buffer.sample()["weight"].isfinite().all()


def test_a_priority_for_a_transition_that_was_overwritten_is_dropped() -> None:
    torch.manual_seed(0)
    buffer = make_buffer(TransitionStorage(4), batch_size=16, alpha=1.0)
    stream = VectorStream(2, seed=0)
    buffer.extend(stream.rollout(2))
    buffer.sample()
    # On a GPU, the numbers may arrive after the transitions are gone.
    buffer._sampler.add(np.array([0, 1]))
    buffer.update_priorities(torch.full((16,), 0.1))

    assert buffer.priorities_state()["priorities"].tolist() == pytest.approx([1.0, 1.0, 0.1, 0.1], abs=1e-5)


def storages(name: str) -> tuple[RingStorage, Any]:
    if name == "vectors":
        return TransitionStorage(24), VectorStream(2, seed=1)
    # Short episodes: the oldest transitions are dropped before they are overwritten.
    return FrameStackStorage(24, 2, episode_slack=0.1), StackStream(2, seed=1, episode_end=0.4)


@pytest.mark.parametrize("name", ["vectors", "frames"])
def test_slots_and_indices_name_the_same_transitions(name: str) -> None:
    storage, stream = storages(name)
    for steps in (3, 5, 1, 9, 4, 13, 2):
        storage.extend(stream.rollout(steps))
        index = np.arange(len(storage))
        assert np.array_equal(storage.index_of(storage.slots(index)), index)
        assert len(set(storage.slots(index).tolist())) == len(storage)


@pytest.mark.parametrize("name", ["vectors", "frames"])
def test_only_what_is_stored_is_drawn_and_every_priority_stays_with_its_transition(name: str) -> None:
    torch.manual_seed(0)
    storage, stream = storages(name)
    buffer = make_buffer(storage, alpha=1.0)
    told: dict[int, float] = {}
    dropped_early = 0
    for steps in (3, 5, 1, 9, 4, 13, 2, 3, 3):
        buffer.extend(stream.rollout(steps))
        dropped_early += len(storage.dropped_slots)
        for _ in range(5):
            batch = buffer.sample()
            expected = stream.expected(batch["action"])
            assert torch.equal(batch["observation"], expected["observation"])
            priority = (batch["action"] % 7 + 1).double()
            buffer.update_priorities(priority)
            told |= dict(zip(batch["action"].tolist(), priority.tolist(), strict=True))
        everything = storage.get(slice(None))
        priorities = buffer.priorities_state()["priorities"][storage.slots(np.arange(len(storage)))]
        largest = max(told.values())
        # One that was drawn has its own; another one the largest at the time when it was stored.
        for action, priority in zip(everything["action"].tolist(), priorities.tolist(), strict=True):
            if action in told:
                assert priority == pytest.approx(told[action], abs=1e-5)
            else:
                assert priority <= largest + 1e-5
        # Nothing else can be drawn.
        assert buffer._sampler._tree.total == pytest.approx(float(priorities.sum()))
    assert (dropped_early > 0) == (name == "frames")


@pytest.mark.parametrize("name", ["vectors", "frames"])
def test_a_restored_buffer_draws_the_same(name: str) -> None:
    torch.manual_seed(0)
    storage, stream = storages(name)
    buffer = make_buffer(storage)

    def learn(memory: Any) -> list[TensorDict]:
        batches = []
        for number in range(6):
            batches.append(memory.sample())
            memory.update_priorities((batches[-1]["action"] % 5 + number).float())
        return batches

    for steps in (3, 5, 9, 4, 13):
        buffer.extend(stream.rollout(steps))
        learn(buffer)
    again, _ = storages(name)
    restored = make_buffer(again)
    again.restore(storage.sizes(), storage.position(), [storage.rows(storage.first_row, storage.row_count)])
    restored.load_priorities_state(buffer.priorities_state())
    further = stream.rollout(3)

    found = []
    for memory in (buffer, restored):
        torch.manual_seed(1)
        memory.extend(further)
        found.append(learn(memory))

    for one, other in zip(*found, strict=True):
        assert torch.equal(one["observation"], other["observation"])
        assert torch.equal(one["weight"], other["weight"])


def test_without_saved_priorities_all_transitions_have_the_same() -> None:
    storage, stream = storages("frames")
    storage.extend(stream.rollout(20))
    buffer = make_buffer(storage)

    buffer.load_priorities_state(None)

    priorities = buffer.priorities_state()["priorities"].numpy()
    assert set(np.flatnonzero(priorities)) == set(storage.slots(np.arange(len(storage))).tolist())
    assert set(priorities[priorities > 0]) == {1.0}
