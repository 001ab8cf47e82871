from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_gfs.datamodules.shuffled_labels import (
    EpochLoader,
    EvaluationLoader,
    PermutedPixels,
    ShuffledLabels,
)
from lit_gfs.errors import UserError


def make_labels(seed: int = 0, shuffle_every: int | None = 2, count: int = 50) -> ShuffledLabels:
    # Image i shows the number i; classes are of unequal size.
    labels = torch.arange(count) % 7
    return ShuffledLabels(torch.arange(count, dtype=torch.float32).unsqueeze(1), labels, shuffle_every, seed)


# -- labels ----------------------------------------------------------------------------------------------


def test_a_shuffle_moves_labels_between_images_and_keeps_class_counts() -> None:
    data = make_labels()

    first, second = data.labels(2), data.labels(4)

    for labels in (first, second):
        assert torch.equal(torch.bincount(labels), torch.bincount(data.true_labels))
        # A random permutation of 7 classes agrees with what it permutes in about 1 of 7 places.
        assert (labels == data.true_labels).float().mean() < 0.4
    assert (first == second).float().mean() < 0.4


def test_labels_change_only_from_one_phase_to_the_next() -> None:
    data = make_labels(shuffle_every=3)

    assert torch.equal(data.labels(0), data.true_labels)
    assert torch.equal(data.labels(2), data.true_labels)
    assert torch.equal(data.labels(3), data.labels(5))
    changes = [epoch for epoch in range(1, 9) if not torch.equal(data.labels(epoch), data.labels(epoch - 1))]
    assert changes == [3, 6]
    assert [epoch for epoch in range(9) if data.is_shuffled_before(epoch)] == changes


def test_labels_and_orders_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = make_labels(seed=5)
    early = one.labels(6), one.order(6)
    torch.manual_seed(2)
    late = make_labels(seed=5)
    late.labels(2), late.order(0)
    other = make_labels(seed=6)

    assert torch.equal(early[0], late.labels(6))
    assert torch.equal(early[1], late.order(6))
    assert not torch.equal(early[0], other.labels(6))
    assert not torch.equal(early[1], other.order(6))


def test_the_first_labels_may_be_noise_as_well() -> None:
    labels = torch.arange(50) % 7
    data = ShuffledLabels(torch.zeros(50, 1), labels, shuffle_every=2, seed=0, starts_true=False)

    assert torch.equal(data.labels(0), data.labels(1))
    assert torch.equal(torch.bincount(data.labels(0)), torch.bincount(labels))
    assert (data.labels(0) == labels).float().mean() < 0.4
    assert torch.equal(data.labels(2), make_labels().labels(2))


def test_without_shuffles_labels_stay_true() -> None:
    data = make_labels(shuffle_every=None)

    assert torch.equal(data.labels(1000), data.true_labels)
    assert not any(data.is_shuffled_before(epoch) for epoch in range(100))


# -- epochs ----------------------------------------------------------------------------------------------


def test_an_epoch_visits_every_image_at_most_once_with_its_label_of_the_moment() -> None:
    data = make_labels()
    loader = EpochLoader(data, batch_size=16)

    epochs = [list(loader) for _ in range(3)]

    assert [len(epoch) for epoch in epochs] == [3, 3, 3]  # 48 of 50 images
    orders = []
    for number, epoch in enumerate(epochs):
        shown = torch.cat([images.squeeze(1) for images, _ in epoch]).long()
        assert len(shown.unique()) == 48
        assert torch.equal(torch.cat([labels for _, labels in epoch]), data.labels(number)[shown])
        orders.append(shown.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_processes_share_an_epoch_without_overlap() -> None:
    data = make_labels()
    loaders = [EpochLoader(data, batch_size=8, rank=rank, world_size=3) for rank in range(3)]

    shown = [torch.cat([images.squeeze(1) for images, _ in loader]) for loader in loaders]

    assert [len(part) for part in shown] == [16, 16, 16]
    assert len(torch.cat(shown).unique()) == 48


@pytest.mark.parametrize("taken", [1, 2, 3, 5, 6])
def test_the_loader_resumes_bit_for_bit(taken: int) -> None:
    """In the middle of an epoch, at its end, and before a shuffle (at the end of the second epoch)."""

    def batches(loader: EpochLoader) -> Any:
        while True:
            yield from loader

    loader = EpochLoader(make_labels(), batch_size=16)
    stream = batches(loader)
    for _ in range(taken):
        next(stream)
    state = dict(loader.state_dict())
    expected = [next(stream) for _ in range(7)]

    resumed = EpochLoader(make_labels(), batch_size=16)
    resumed.load_state_dict(state)

    for got, want in zip(batches(resumed), expected, strict=False):
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


def test_evaluation_covers_every_image_with_the_labels_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_gfs.datamodules.shuffled_labels.EVALUATION_BATCH", 20)
    data, epoch = make_labels(), 0
    loader = EvaluationLoader(data, lambda: epoch)

    for epoch in (0, 2):
        batches = list(loader)
        assert [len(images) for images, _ in batches] == [20, 20, 10]
        assert len(loader) == 3
        assert torch.equal(torch.cat([images for images, _ in batches]), data.images)
        assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels(epoch))


def test_a_position_behind_the_end_is_refused() -> None:
    state = EpochLoader(make_labels(), batch_size=5).state_dict() | {"position": 8}

    with pytest.raises(UserError, match="8 batches into an epoch of now 5; expected the batch_size"):
        EpochLoader(make_labels(), batch_size=10).load_state_dict(state)


# -- pixels ----------------------------------------------------------------------------------------------


def make_pixels(shape: tuple[int, ...] = (12,), shuffle_every: int | None = 2) -> PermutedPixels:
    images = torch.arange(30 * torch.Size(shape).numel(), dtype=torch.float32).view(30, *shape)
    return PermutedPixels(images, torch.arange(30) % 7, shuffle_every, seed=0)


@pytest.mark.parametrize("shape", [(12,), (3, 4, 5)])
def test_pixels_of_all_images_change_places_alike(shape: tuple[int, ...]) -> None:
    data = make_pixels(shape)
    everything = slice(None)

    assert torch.equal(data.select(everything, 1), data.images)
    first, second = data.select(everything, 2), data.select(everything, 4)
    assert torch.equal(first, data.select(everything, 3))
    assert not torch.equal(first, second)
    assert torch.equal(data.labels(4), data.true_labels)
    # Image i has i * size added to all of its pixels, so alike permutations differ by just that.
    size = torch.Size(shape).numel()
    assert torch.equal(
        first - size * torch.arange(30.0).view(30, *[1] * len(shape)), first[:1].expand(30, *shape)
    )
    assert torch.equal(first.flatten(1).sort().values, data.images.flatten(1))


def test_channels_of_a_pixel_move_together() -> None:
    images = torch.arange(20.0).view(1, 1, 4, 5) + torch.tensor([0.0, 100.0, 200.0]).view(1, 3, 1, 1)
    data = PermutedPixels(images, torch.zeros(1, dtype=torch.int64), 1, seed=3)
    moved = data.select(slice(None), 1)
    assert not torch.equal(moved, images)
    assert torch.equal(moved[:, 1], moved[:, 0] + 100)
    assert torch.equal(moved[:, 2], moved[:, 0] + 200)


def test_loaders_show_the_pixels_of_the_epoch() -> None:
    data = make_pixels()
    training = EpochLoader(data, batch_size=30)
    for epoch in range(3):
        ((images, labels),) = list(training)
        order = data.order(epoch)
        assert torch.equal(images, data.select(slice(None), epoch)[order])
        assert torch.equal(labels, data.true_labels[order])
        ((shown, _),) = list(EvaluationLoader(data, lambda: training.epoch))
        assert torch.equal(shown, data.select(slice(None), epoch))
