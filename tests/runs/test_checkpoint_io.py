from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_gfs.runs.checkpoint_io import ChecksummedCheckpointIO
from lit_gfs.utils.checksummed_files import DamagedFile, UnwritableFile, read_checksummed


def test_the_last_checkpoint_keeps_the_one_before(tmp_path: Path) -> None:
    plugin, path = ChecksummedCheckpointIO(), tmp_path / "last.ckpt"

    for step in range(3):
        plugin.save_checkpoint({"step": step, "weights": torch.full((2,), step)}, path)

    assert {each.name: read_checksummed(each)["step"] for each in tmp_path.iterdir()} == {
        "last.ckpt": 2,
        "previous.ckpt": 1,
    }
    assert torch.equal(plugin.load_checkpoint(path)["weights"], torch.tensor([2, 2]))


def test_a_damaged_last_checkpoint_does_not_take_the_place_of_a_good_one(tmp_path: Path) -> None:
    plugin, path = ChecksummedCheckpointIO(), tmp_path / "last.ckpt"
    for step in range(2):
        plugin.save_checkpoint({"step": step}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(DamagedFile, match=r"last\.ckpt"):
        plugin.load_checkpoint(path)
    plugin.save_checkpoint({"step": 2}, path)

    assert read_checksummed(tmp_path / "previous.ckpt") == {"step": 0}
    assert read_checksummed(path) == {"step": 2}


def test_a_generation_that_cannot_be_kept_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, path = ChecksummedCheckpointIO(), tmp_path / "last.ckpt"
    plugin.save_checkpoint({"step": 0}, path)

    def without_links(*arguments: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    def without_room(source: Any, target: Any) -> None:
        target.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", without_links)
    plugin.save_checkpoint({"step": 1}, path)
    assert read_checksummed(tmp_path / "previous.ckpt") == {"step": 0}

    monkeypatch.setattr(shutil, "copyfileobj", without_room)
    with pytest.raises(UnwritableFile, match="No space left"):
        plugin.save_checkpoint({"step": 2}, path)
    assert {each.name: read_checksummed(each)["step"] for each in tmp_path.iterdir()} == {
        "last.ckpt": 1,
        "previous.ckpt": 0,
    }


def test_the_older_generation_is_not_written_through_a_link(tmp_path: Path) -> None:
    plugin, elsewhere = ChecksummedCheckpointIO(), tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    path = tmp_path / "run" / "last.ckpt"
    plugin.save_checkpoint({"step": 0}, path)
    for name in ("previous.ckpt", "previous.ckpt.partial", "last.ckpt.partial"):
        (path.parent / name).symlink_to(elsewhere)

    plugin.save_checkpoint({"step": 1}, path)

    assert elsewhere.read_text() == "mine"
    assert read_checksummed(path.with_name("previous.ckpt")) == {"step": 0}
    assert read_checksummed(path) == {"step": 1}


@pytest.mark.parametrize("name", ["notes.txt", "run/../best.ckpt"])
def test_only_checkpoints_of_the_directory_are_removed(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / name).write_text("mine")

    ChecksummedCheckpointIO().remove_checkpoint(tmp_path / name)

    assert (tmp_path / name).read_text() == "mine"


def test_other_checkpoints_have_one_generation(tmp_path: Path) -> None:
    plugin, path = ChecksummedCheckpointIO(), tmp_path / "best.ckpt"
    for step in range(2):
        plugin.save_checkpoint({"step": step}, path)

    assert [each.name for each in tmp_path.iterdir()] == ["best.ckpt"]
    plugin.remove_checkpoint(path)
    plugin.remove_checkpoint(path)
    assert not path.exists()
