from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_gfs.checkpoint_io import SealedCheckpointIO
from lit_gfs.sealed import DamagedFile, read_sealed


def test_the_last_checkpoint_keeps_the_one_before(tmp_path: Path) -> None:
    plugin, path = SealedCheckpointIO(), tmp_path / "last.ckpt"

    for step in range(3):
        plugin.save_checkpoint({"step": step, "weights": torch.full((2,), step)}, path)

    assert {each.name: read_sealed(each)["step"] for each in tmp_path.iterdir()} == {
        "last.ckpt": 2,
        "previous.ckpt": 1,
    }
    assert torch.equal(plugin.load_checkpoint(path)["weights"], torch.tensor([2, 2]))


def test_a_damaged_last_checkpoint_does_not_take_the_place_of_a_good_one(tmp_path: Path) -> None:
    plugin, path = SealedCheckpointIO(), tmp_path / "last.ckpt"
    for step in range(2):
        plugin.save_checkpoint({"step": step}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(DamagedFile, match=r"last\.ckpt"):
        plugin.load_checkpoint(path)
    plugin.save_checkpoint({"step": 2}, path)

    assert read_sealed(tmp_path / "previous.ckpt") == {"step": 0}
    assert read_sealed(path) == {"step": 2}


def test_other_checkpoints_have_one_generation(tmp_path: Path) -> None:
    plugin, path = SealedCheckpointIO(), tmp_path / "best.ckpt"
    for step in range(2):
        plugin.save_checkpoint({"step": step}, path)

    assert [each.name for each in tmp_path.iterdir()] == ["best.ckpt"]
    plugin.remove_checkpoint(path)
    plugin.remove_checkpoint(path)
    assert not path.exists()
