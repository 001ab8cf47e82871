from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lit_gfs.datamodules.image_sets import load_cifar10, load_digits, load_images
from lit_gfs.errors import UserError
from support.datasets import write_cifar10


def test_digits_are_vectors_between_0_and_1_with_about_180_of_each() -> None:
    images, labels = load_digits()

    assert images.shape == (1797, 64)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    counts = torch.bincount(labels)
    assert len(counts) == 10
    assert counts.min() >= 170
    # The first image of the set is a zero: dark in its middle, between two strokes.
    assert labels[0] == 0
    assert images[0].reshape(8, 8)[3, 4] == 0


def test_a_cifar10_record_is_a_label_and_three_planes_of_rows(tmp_path: Path) -> None:
    planes = [bytes([red]) * 1024 for red in (10, 20, 30)]
    second = bytearray(3072)
    second[1024 + 32 * 2 + 5] = 255  # green, row 2, column 5
    (tmp_path / "data_batch_1.bin").write_bytes(bytes([7]) + b"".join(planes) + bytes([2]) + bytes(second))

    images, labels = load_cifar10(tmp_path, samples=2)

    assert images.dtype == torch.uint8
    assert labels.tolist() == [7, 2]
    assert images[0].flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30]
    assert images[1].nonzero().tolist() == [[1, 2, 5]]


def test_only_as_many_files_as_needed_are_read_in_order(tmp_path: Path) -> None:
    write_cifar10(tmp_path, (3, 4))

    images, labels = load_images("cifar10", str(tmp_path), samples=5)

    content = (tmp_path / "data_batch_2.bin").read_bytes()
    assert images.shape == (5, 3, 32, 32)
    assert labels[3:].tolist() == [content[0], content[3073]]
    assert images[4].flatten().tolist() == list(content[3074 : 2 * 3073])
    with pytest.raises(UserError, match=r"no file 'data_batch_3.bin'"):
        load_images("cifar10", str(tmp_path), samples=8)


def test_all_five_files_make_the_whole_set(tmp_path: Path) -> None:
    write_cifar10(tmp_path, (2, 2, 2, 2, 2))

    assert len(load_images("cifar10", str(tmp_path), None)[0]) == 10
    with pytest.raises(UserError, match="samples is 11; expected at most 10, as many as 'cifar10' has"):
        load_images("cifar10", str(tmp_path), 11)


def test_a_missing_folder_says_what_to_place_where(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    expected = re.escape(missing) + r".*data_batch_1.bin.*cifar-10-batches-bin.*cs.toronto.edu.*as root"

    with pytest.raises(UserError, match=expected) as error:
        load_images("cifar10", missing, None)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 100, 3073 + 3072])
def test_a_truncated_file_is_refused(size: int, tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(size))

    with pytest.raises(UserError, match=f"data_batch_1.bin' has {size:,} bytes; expected records of 3,073"):
        load_cifar10(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(bytes([10] + [0] * 3072))

    with pytest.raises(UserError, match="has a label 10; expected 0 to 9"):
        load_cifar10(tmp_path)


def test_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match="dataset is 'digit'; expected one of 'digits', 'cifar10'; did you mean 'digits'"
    ):
        load_images("digit", "", None)


def test_more_samples_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="samples is 1798; expected at most 1797"):
        load_images("digits", "", 1798)
