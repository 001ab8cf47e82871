from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_gfs.errors import UserError
from lit_gfs.utils.checksummed_files import (
    DamagedFile,
    UnwritableFile,
    is_intact,
    read_checksummed,
    write_checksummed,
)
from support.processes import killed_while

CONTENT = {
    "weights": torch.arange(3000, dtype=torch.float32).reshape(3, 1000),
    "flags": torch.tensor([True, False]),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "nested": {"list": [1, 2.5, "three", None], 7: {"empty": {}}},
}


def assert_is_content(read: Any) -> None:
    assert read.keys() == CONTENT.keys()
    assert read["nested"] == CONTENT["nested"]
    for name in ("weights", "flags", "half"):
        assert read[name].dtype == CONTENT[name].dtype
        assert torch.equal(read[name], CONTENT[name])


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file.ckpt"
    write_checksummed({"older": 1}, path)
    digest = write_checksummed(CONTENT, path)
    assert_is_content(read_checksummed(path))
    assert_is_content(read_checksummed(path, digest))
    assert is_intact(path)
    assert is_intact(path, digest)
    assert os.listdir(path.parent) == ["file.ckpt"]


def test_the_seal_is_the_digest_of_the_archive_without_it(tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    digest = write_checksummed(CONTENT, path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment == b"sha256:" + digest.encode()
    archive_alone = path.read_bytes()[: -len(archive.comment) - 2] + b"\0\0"
    assert hashlib.sha256(archive_alone).hexdigest() == digest


def test_torch_reads_a_sealed_file_like_its_own(tmp_path: Path) -> None:
    write_checksummed(CONTENT, tmp_path / "file.ckpt")
    assert_is_content(torch.load(tmp_path / "file.ckpt", weights_only=True))
    assert_is_content(torch.load(tmp_path / "file.ckpt", weights_only=True, mmap=True))


def test_the_same_content_gives_the_same_file(tmp_path: Path) -> None:
    first, second = (write_checksummed(CONTENT, tmp_path / name) for name in ("one", "two"))
    assert first == second
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


# -- damage --------------------------------------------------------------------------------------------------


def assert_damaged(path: Path, message: str) -> None:
    assert not is_intact(path)
    with pytest.raises(DamagedFile, match=message) as caught:
        read_checksummed(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("position", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("bits", [0x01, 0x80, 0xFF])
def test_flipped_bits_anywhere_are_found(tmp_path: Path, position: float, bits: int) -> None:
    path = tmp_path / "file.ckpt"
    write_checksummed(CONTENT, path)
    damaged = bytearray(path.read_bytes())
    damaged[round(position * (len(damaged) - 1))] ^= bits
    path.write_bytes(damaged)
    assert_damaged(path, "is damaged|its seal is missing")


def test_a_flipped_bit_in_any_of_the_last_bytes_is_found(tmp_path: Path) -> None:
    # The end of the archive's directory, the comment's length, the seal.
    path = tmp_path / "file.ckpt"
    write_checksummed(CONTENT, path)
    whole = path.read_bytes()
    for offset in range(1, 120):
        damaged = bytearray(whole)
        damaged[-offset] ^= 0x10
        path.write_bytes(damaged)
        assert not is_intact(path), offset


@pytest.mark.parametrize("kept", [0, 1, 70, 80, 500, -1, -40, -73, -75])
def test_a_file_cut_short_is_found(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "file.ckpt"
    write_checksummed(CONTENT, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert_damaged(path, "is damaged|its seal is missing")


def test_bytes_behind_the_seal_are_found(tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    write_checksummed(CONTENT, path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert_damaged(path, "its seal is missing")


def test_a_file_without_a_seal_is_refused(tmp_path: Path) -> None:
    torch.save(CONTENT, tmp_path / "torch.ckpt")
    assert_damaged(tmp_path / "torch.ckpt", "its seal is missing")
    (tmp_path / "text.ckpt").write_text("not a checkpoint\n" * 100)
    assert_damaged(tmp_path / "text.ckpt", "its seal is missing")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert_damaged(tmp_path / "missing.ckpt", "No such file")
    assert_damaged(tmp_path, "Is a directory")


def test_another_intact_file_in_its_place_is_found(tmp_path: Path) -> None:
    digest = write_checksummed(CONTENT, tmp_path / "file.ckpt")
    write_checksummed({"another": 1}, tmp_path / "file.ckpt")
    assert is_intact(tmp_path / "file.ckpt")
    assert not is_intact(tmp_path / "file.ckpt", digest)
    with pytest.raises(DamagedFile, match=f"another file than expected.* {digest[:12]}"):
        read_checksummed(tmp_path / "file.ckpt", digest)


# -- code in the place of data -------------------------------------------------------------------------------


class Malicious:
    """Unpickling it makes a directory."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def seal(archive: bytes) -> bytes:
    """Seal any bytes, as somebody may who knows how."""
    seal = b"sha256:" + hashlib.sha256(archive[:-2] + b"\0\0").hexdigest().encode()
    return archive[:-2] + len(seal).to_bytes(2, "little") + seal


def test_code_behind_a_valid_seal_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "file.ckpt", tmp_path / "mark"
    write_checksummed({"fine": torch.ones(2), "code": Malicious(mark)}, path)
    assert is_intact(path)
    with pytest.raises(DamagedFile, match="something else than plain data"):
        read_checksummed(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # it would have run
    assert mark.exists()


@pytest.mark.parametrize("protocol", [0, 2])
def test_a_bare_pickle_with_a_seal_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    path, mark = tmp_path / "file.ckpt", tmp_path / "mark"
    path.write_bytes(seal(pickle.dumps(Malicious(mark), protocol) + b"\0\0"))
    assert is_intact(path)
    with pytest.raises(DamagedFile, match="something else than plain data"):
        read_checksummed(path)
    assert not mark.exists()


# -- writing that fails --------------------------------------------------------------------------------------


def test_on_a_full_disk_the_old_file_stays_and_nothing_else(small_disk: Path) -> None:
    path = small_disk / "file.ckpt"
    write_checksummed(CONTENT, path)
    with pytest.raises(UnwritableFile, match=r"(No space left|File too large)") as caught:
        write_checksummed({"large": torch.zeros(1 << 21, dtype=torch.uint8)}, path)
    assert str(small_disk) in str(caught.value)
    assert "'file.ckpt'" in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert os.listdir(small_disk) == ["file.ckpt"]
    assert_is_content(read_checksummed(path))


def test_a_disk_that_is_full_only_at_the_end_is_found_too(small_disk: Path) -> None:
    # Sizes around the megabyte: what does not fit is the archive's directory, or the seal.
    for size in range((1 << 20) - 2048, 1 << 20, 100):
        path = small_disk / "file.ckpt"
        path.unlink(missing_ok=True)
        try:
            write_checksummed({"large": torch.zeros(size, dtype=torch.uint8)}, path)
        except UnwritableFile:
            assert os.listdir(small_disk) == []
        else:
            assert is_intact(path)


def test_a_directory_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    directory = re.escape(str(tmp_path / "file" / "run"))
    with pytest.raises(
        UnwritableFile, match=rf"cannot write 'a.ckpt' in the directory {directory}: Not a dir"
    ):
        write_checksummed(CONTENT, tmp_path / "file" / "run" / "a.ckpt")


def test_what_cannot_be_pickled_leaves_no_trace(tmp_path: Path) -> None:
    write_checksummed(CONTENT, tmp_path / "file.ckpt")
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        write_checksummed({"function": lambda: 0}, tmp_path / "file.ckpt")
    assert os.listdir(tmp_path) == ["file.ckpt"]
    assert_is_content(read_checksummed(tmp_path / "file.ckpt"))


@pytest.mark.parametrize(("code", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_directory_need_not_be_synced_where_none_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fails: bool
) -> None:
    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UnwritableFile, match=r"Input/output error") if fails else contextlib.nullcontext():
        write_checksummed(CONTENT, tmp_path / "file.ckpt")
    assert_is_content(read_checksummed(tmp_path / "file.ckpt"))


def test_a_file_is_whole_on_disk_before_it_takes_its_name_and_its_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Path, int]] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append(("sync", path, 0 if path.is_dir() else path.stat().st_size))
        fsync(descriptor)

    def recorded_replace(self: Path, target: Path) -> Path:
        calls.append(("replace", Path(target), self.stat().st_size))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    path = tmp_path / "file.ckpt"
    write_checksummed(CONTENT, path)

    size = path.stat().st_size
    assert calls == [
        ("sync", tmp_path / "file.ckpt.partial", size),
        ("replace", path, size),
        ("sync", tmp_path, 0),
    ]


def test_a_process_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    new = {"new": torch.zeros(1000)}
    survivors = []
    for moment in range(1, 100):
        write_checksummed(CONTENT, path)
        if killed_while(lambda: write_checksummed(new, path), moment) is None:
            break
        assert is_intact(path)
        survivors.append("new" if "new" in read_checksummed(path) else "old")
        assert set(os.listdir(tmp_path)) <= {"file.ckpt", "file.ckpt.partial"}
    else:
        pytest.fail("the process never ended by itself")
    assert survivors == ["old"] * (len(survivors) - 1) + ["new"]
    assert len(survivors) > 10
    assert os.listdir(tmp_path) == ["file.ckpt"]
