"""Against the storage that was never saved."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from lit_gfs.buffers.frame_stacks import FrameStackStorage
from lit_gfs.buffers.ring import RingStorage
from lit_gfs.buffers.shards import ReplayShards, shard_names
from lit_gfs.buffers.transitions import TransitionStorage
from lit_gfs.errors import UserError
from lit_gfs.utils.checksummed_files import (
    DamagedFile,
    UnwritableFile,
    is_intact,
    read_checksummed,
    write_checksummed,
)
from support.processes import killed_while

STACK = 3


class Stream:
    """Rollouts of random episodes, as stacks of frames; those of vectors are the same frames, flat."""

    def __init__(self, num_envs: int, seed: int, episode_end: float, stacked: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.num_envs = num_envs
        self.episode_end = episode_end
        self.stacked = stacked
        self.reset()

    def reset(self) -> None:
        self.current = np.stack([self.initial() for _ in range(self.num_envs)])

    def initial(self) -> np.ndarray:
        stack = self.rng.integers(0, 256, (STACK, 2, 2), np.uint8)
        stack[: self.rng.integers(STACK)] = 0
        return stack

    def step(self) -> TensorDict:
        newest = self.rng.integers(0, 256, (self.num_envs, 1, 2, 2), np.uint8)
        next_observation = np.concatenate([self.current[:, 1:], newest], 1)
        done = self.rng.random((self.num_envs, 1)) < self.episode_end
        terminated = done & (self.rng.random((self.num_envs, 1)) < 0.5)
        entries = {
            "observation": self.current.copy() if self.stacked else self.current.reshape(-1, STACK * 4),
            "action": self.rng.integers(0, 5, self.num_envs),
            "next": {
                "observation": next_observation if self.stacked else next_observation.reshape(-1, STACK * 4),
                "reward": self.rng.random((self.num_envs, 1), np.float32),
                "done": done,
                "terminated": terminated,
                "truncated": done & ~terminated,
            },
        }
        self.current = next_observation.copy()
        for env in np.nonzero(done)[0]:
            self.current[env] = self.initial()
        return TensorDict(entries, [self.num_envs])

    def rollout(self, steps: int) -> TensorDict:
        return torch.stack([self.step() for _ in range(steps)], 1)


def make_storage(capacity: int, num_envs: int, stacked: bool) -> RingStorage:
    return FrameStackStorage(capacity, num_envs, 0.1) if stacked else TransitionStorage(capacity)


def assert_same(left: RingStorage, right: RingStorage) -> None:
    """Check that two storages answer alike, index by index, and stand at the same place."""
    assert len(left) == len(right)
    assert left.write_count == right.write_count
    assert left.position() == right.position()
    if len(left):
        one, other = left.get(slice(None)), right.get(slice(None))
        assert_equal(one, other)


def assert_equal(one: TensorDictBase, other: TensorDictBase) -> None:
    assert set(one.keys(True, True)) == set(other.keys(True, True))
    for key, value in one.items(True, True):
        assert value.dtype == other[key].dtype, key
        assert torch.equal(value, other[key]), key


def files(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def checkpoint(shards: ReplayShards, storage: RingStorage, name: str = "last.ckpt") -> dict[str, Any]:
    """Do what a run does when it writes a checkpoint; return the manifest."""
    manifest = shards.save(storage)
    write_checksummed({"loops": [{"loader": {"replay": manifest}}]}, shards.directory.parent / name)
    return manifest


def manifest_in(path: Path) -> dict[str, Any]:
    return read_checksummed(path)["loops"][0]["loader"]["replay"]


both_kinds = pytest.mark.parametrize("stacked", [True, False], ids=["frames", "transitions"])


# -- exactness -----------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("seed", range(6))
def test_a_chain_of_resumed_runs_holds_what_the_uninterrupted_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, stacked: bool
) -> None:
    rng = np.random.default_rng(seed)
    num_envs = int(rng.integers(1, 5))
    capacity = num_envs * int(rng.integers(1, 40))
    monkeypatch.setattr("lit_gfs.buffers.shards._SHARD_TRANSITIONS", int(rng.choice([20, 90])))
    stream = Stream(num_envs, seed, rng.choice([0.0, 0.05, 0.3, 0.7]), stacked)
    uninterrupted = make_storage(capacity, num_envs, stacked)
    shards, resumed = ReplayShards(tmp_path / "replay"), make_storage(capacity, num_envs, stacked)
    for _ in range(20):
        extensions = int(rng.integers(4))
        for _ in range(extensions):
            rollout = stream.rollout(int(rng.choice([1, 1, 2, 7, 50])))
            indices = [storage.extend(rollout) for storage in (uninterrupted, resumed)]
            assert torch.equal(*indices)
        if extensions and rng.random() < 0.5:  # the environments are reset from outside
            uninterrupted.end_episodes()
            resumed.end_episodes()
            stream.reset()
        manifest = checkpoint(shards, resumed)
        assert shards.save(resumed) == manifest
        if rng.random() < 0.5:
            shards, resumed = ReplayShards(tmp_path / "replay"), make_storage(capacity, num_envs, stacked)
            shards.load(resumed, manifest_in(tmp_path / "last.ckpt"))
        assert_same(resumed, uninterrupted)
    assert uninterrupted.write_count > 2 * capacity


@both_kinds
def test_batches_after_a_resume_are_those_of_the_uninterrupted_run(tmp_path: Path, stacked: bool) -> None:
    stream = Stream(2, 0, 0.2, stacked)
    uninterrupted, resumed = (make_storage(30, 2, stacked) for _ in range(2))
    uninterrupted.extend(stream.rollout(40))
    ReplayShards(tmp_path).load(resumed, ReplayShards(tmp_path).save(uninterrupted))
    for _ in range(10):
        rollout = stream.rollout(3)
        for storage in (uninterrupted, resumed):
            storage.extend(rollout)
        index = torch.randint(len(uninterrupted), (16,))
        assert_equal(uninterrupted.get(index), resumed.get(index))


@both_kinds
def test_a_storage_in_a_full_ring_is_replaced_by_an_empty_one(tmp_path: Path, stacked: bool) -> None:
    empty, full = (make_storage(30, 2, stacked) for _ in range(2))
    manifest = ReplayShards(tmp_path / "replay").save(empty)
    assert manifest["pieces"] == []
    full.extend(Stream(2, 0, 0.2, stacked).rollout(40))
    ReplayShards(tmp_path / "replay").load(full, manifest)
    assert_same(full, empty)


def test_saving_leaves_the_open_episodes_open(tmp_path: Path) -> None:
    storage, stream = FrameStackStorage(30, 2), Stream(2, 0, 0.0, True)
    storage.extend(stream.rollout(4))
    manifest = ReplayShards(tmp_path).save(storage)
    assert not storage.get(slice(None))["next", "truncated"].any()

    restored = FrameStackStorage(30, 2)
    ReplayShards(tmp_path).load(restored, manifest)
    more = stream.rollout(3)
    for each in (storage, restored):
        each.extend(more)  # the same episode goes on
    assert_same(restored, storage)


# -- what is on disk -----------------------------------------------------------------------------------------


@both_kinds
def test_a_shard_holds_what_is_new_and_nothing_is_written_twice(tmp_path: Path, stacked: bool) -> None:
    storage, stream = make_storage(200_000, 2, stacked), Stream(2, 0, 0.01, stacked)
    shards = ReplayShards(tmp_path / "replay")
    storage.extend(stream.rollout(800))
    first = checkpoint(shards, storage)
    (name,) = files(shards.directory)
    before = (shards.directory / name).stat()

    shards = ReplayShards(tmp_path / "replay")
    resumed = make_storage(200_000, 2, stacked)
    shards.load(resumed, first)
    resumed.extend(stream.rollout(10))
    second = checkpoint(shards, resumed)
    assert second["pieces"][0] == first["pieces"][0]
    assert files(shards.directory) == [shard["file"] for shard in second["pieces"]]
    after = (shards.directory / name).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (shards.directory / second["pieces"][1]["file"]).stat().st_size < after.st_size / 10


def test_a_large_memory_is_written_in_shards_of_bounded_size(tmp_path: Path) -> None:
    storage = FrameStackStorage(400_000, 10)
    one = Stream(10, 0, 0.0, True).rollout(1)
    one["next", "done"].fill_(True)
    for _ in range(2):
        storage.extend(one.expand(10, 3500).contiguous())
    manifest = ReplayShards(tmp_path).save(storage)
    bounds = [(shard["first"], shard["last"]) for shard in manifest["pieces"]]
    assert bounds == [(0, 3276), (3276, 6552), (6552, 7000)]


@both_kinds
def test_shards_go_when_no_checkpoint_names_them(tmp_path: Path, stacked: bool) -> None:
    storage, stream = make_storage(40, 2, stacked), Stream(2, 0, 0.05, stacked)
    shards = ReplayShards(tmp_path / "replay")
    kept = []
    for step in range(12):
        storage.extend(stream.rollout(5))
        manifest = shards.save(storage)
        if step == 3:
            write_checksummed({"best": manifest}, tmp_path / "best.ckpt")
            kept = manifest["pieces"]
        # Between the shards and the checkpoint that names them, the last checkpoint can still be loaded.
        for path in tmp_path.glob("*.ckpt"):
            assert shard_names(read_checksummed(path)) <= set(files(shards.directory))
        write_checksummed({"last": manifest}, tmp_path / "last.ckpt")
    needed = {shard["file"] for shard in [*manifest["pieces"], *kept]}
    assert needed <= set(files(shards.directory))
    # A shard that the last checkpoint alone named goes with the next but one.
    assert len(files(shards.directory)) <= len(needed) + 2

    (tmp_path / "best.ckpt").unlink()
    for _ in range(2):
        storage.extend(stream.rollout(5))
        manifest = checkpoint(shards, storage)
    shards.save(storage)
    assert files(shards.directory) == [shard["file"] for shard in manifest["pieces"]]


def test_shards_that_a_checkpoint_in_a_subfolder_names_are_spared(tmp_path: Path) -> None:
    storage, stream = TransitionStorage(20), Stream(2, 0, 0.05, False)
    shards = ReplayShards(tmp_path / "replay")
    storage.extend(stream.rollout(5))
    kept = checkpoint(shards, storage, "checkpoints/kept.ckpt")
    for _ in range(6):
        storage.extend(stream.rollout(5))
        manifest = checkpoint(shards, storage)

    assert not shard_names(kept) & shard_names(manifest)
    assert shard_names(kept) <= set(files(shards.directory))
    ReplayShards(tmp_path / "replay").require_intact(kept)


def test_beside_a_damaged_checkpoint_nothing_is_removed(tmp_path: Path) -> None:
    storage, stream = TransitionStorage(20), Stream(2, 0, 0.05, False)
    shards = ReplayShards(tmp_path / "replay")
    for _ in range(8):
        storage.extend(stream.rollout(5))
        (tmp_path / "last.ckpt").write_bytes(b"torn")
        shards.save(storage)
    assert len(files(shards.directory)) == 8
    checkpoint(shards, storage)
    shards.save(storage)
    assert len(files(shards.directory)) == 2


def test_what_killed_processes_left_is_removed_and_other_files_are_not(tmp_path: Path) -> None:
    storage = TransitionStorage(20)
    shards = ReplayShards(tmp_path / "replay")
    shards.directory.mkdir()
    for name in ("notes.txt", "replay_1-2.pt", "replay_000000000000-000000000003.pt.partial"):
        (shards.directory / name).touch()
    storage.extend(Stream(2, 0, 0.05, False).rollout(5))
    shards.save(storage)
    assert files(shards.directory) == ["notes.txt", "replay_000000000000-000000000010.pt", "replay_1-2.pt"]


def test_shards_that_manifests_name_are_spared(tmp_path: Path) -> None:
    storage, stream = TransitionStorage(20), Stream(2, 0, 0.05, False)
    shards, manifests = ReplayShards(tmp_path / "replay"), []
    for _ in range(4):
        storage.extend(stream.rollout(10))
        manifests.append(checkpoint(shards, storage, f"{len(manifests)}.ckpt"))
    ReplayShards(tmp_path / "replay").remove_unused([manifests[1], {"nested": [manifests[3]]}])
    assert files(tmp_path / "replay") == [manifests[at]["pieces"][0]["file"] for at in (1, 3)]


def test_shards_stay_although_the_checkpoint_that_names_them_was_not_written(tmp_path: Path) -> None:
    shards, storage, stream = (
        ReplayShards(tmp_path / "replay"),
        FrameStackStorage(50, 1),
        Stream(1, 0, 0.1, True),
    )
    storage.extend(stream.rollout(5))
    shards.save(storage)
    (shards.directory / "replay_000000000000-000000000009.pt").touch()  # there is something to remove
    storage.extend(stream.rollout(5))

    ReplayShards(tmp_path / "replay").require_intact(shards.save(storage))
    assert len(files(shards.directory)) == 2


def test_a_run_resumed_further_back_overwrites_nothing(tmp_path: Path) -> None:
    storage, stream = TransitionStorage(100), Stream(2, 0, 0.05, False)
    shards = ReplayShards(tmp_path / "replay")
    storage.extend(stream.rollout(5))
    previous = checkpoint(shards, storage, "previous.ckpt")
    storage.extend(stream.rollout(5))
    last = checkpoint(shards, storage)

    shards, again = ReplayShards(tmp_path / "replay"), TransitionStorage(100)
    shards.load(again, previous)
    again.extend(stream.rollout(5))  # other transitions than then
    other = shards.save(again)
    assert other["pieces"][1]["file"] == "replay_000000000010-000000000020_1.pt"
    for manifest, expected in ((last, storage), (other, again)):
        loaded = TransitionStorage(100)
        ReplayShards(tmp_path / "replay").load(loaded, manifest)
        assert_same(loaded, expected)


def test_a_run_that_goes_on_elsewhere_writes_shards_of_its_own(tmp_path: Path) -> None:
    storage, stream = TransitionStorage(100), Stream(2, 0, 0.05, False)
    storage.extend(stream.rollout(5))
    manifest = checkpoint(ReplayShards(tmp_path / "replay"), storage)
    resumed = TransitionStorage(100)
    ReplayShards(tmp_path / "replay").load(resumed, manifest)
    resumed.extend(stream.rollout(5))
    manifest = ReplayShards(tmp_path / "other" / "replay").save(resumed)
    shutil.rmtree(tmp_path / "replay")
    loaded = TransitionStorage(100)
    ReplayShards(tmp_path / "other" / "replay").load(loaded, manifest)
    assert_same(loaded, resumed)


# -- damage --------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, stacked: bool = True) -> tuple[RingStorage, dict[str, Any], Path]:
    """Save three shards; return the storage, the manifest and the path of the second shard."""
    storage, stream = make_storage(100, 2, stacked), Stream(2, 0, 0.05, stacked)
    shards = ReplayShards(tmp_path / "replay")
    for _ in range(3):
        storage.extend(stream.rollout(8))
        manifest = shards.save(storage)
    return storage, manifest, shards.directory / manifest["pieces"][1]["file"]


def flip(position: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[round(position * (len(content) - 1))] ^= 0x04
        path.write_bytes(content)

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def swap(path: Path) -> None:
    shutil.copy(min(path.parent.iterdir()), path)


def forge(path: Path) -> None:
    """Seal other transitions with the same numbers."""
    rows = read_checksummed(path)
    rows.get("columns", rows.get("following"))["reward"] += 1
    write_checksummed(rows, path)


DAMAGES = [flip(0.0), flip(0.3), flip(0.6), flip(0.99), flip(1.0), cut, swap, forge, Path.unlink]


@both_kinds
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[Path], None], stacked: bool) -> None:
    storage, manifest, path = saved(tmp_path, stacked)
    shards = ReplayShards(tmp_path / "replay")
    shards.require_intact(manifest)
    damage(path)
    with pytest.raises(DamagedFile, match=re.escape(str(path))):
        shards.require_intact(manifest)
    with pytest.raises(DamagedFile, match=re.escape(str(path))):
        shards.load(storage, manifest)
    assert len(storage) == 0


@pytest.mark.parametrize(
    "name",
    [
        "../replay_000000000000-000000000016.pt",
        "/tmp/replay_000000000000-000000000016.pt",
        "x/replay_000000000000-000000000016.pt",
        "..",
        "",
        "replay_000000000000-000000000016.pt\n",
        "replay_000000000000-000000000016.pkl",
        "last.ckpt",
    ],
)
def test_a_manifest_names_nothing_outside_of_the_directory(tmp_path: Path, name: str) -> None:
    storage, manifest, _ = saved(tmp_path)
    manifest["pieces"][1]["file"] = name
    for use in (ReplayShards(tmp_path / "replay").require_intact, lambda it: load(tmp_path, storage, it)):
        with pytest.raises(UserError, match="names the replay piece"):
            use(manifest)
    assert shard_names({"file": name}) == set()


def load(tmp_path: Path, storage: RingStorage, manifest: Any) -> None:
    ReplayShards(tmp_path / "replay").load(storage, manifest)


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.pop("sizes"),
        lambda it: it.update(pieces={}),
        lambda it: it["pieces"].append("piece"),
        lambda it: it["pieces"][0].pop("sha256"),
        lambda it: it["pieces"][0].update(first="0"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, change: Callable[[dict], Any]) -> None:
    storage, manifest, _ = saved(tmp_path)
    change(manifest)
    with pytest.raises(UserError, match="expected a manifest of replay pieces"):
        load(tmp_path, storage, manifest)


@both_kinds
@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["position"].clear(),
        lambda it: it["position"].update(row_count=[]),
        lambda it: it["position"].update(row_count=["x"]),
        lambda it: it["position"].update(row_count=[1000]),
        lambda it: it["pieces"].pop(),
        lambda it: it["pieces"].pop(1),
        lambda it: it["pieces"].reverse(),
        lambda it: it["pieces"][0].update(last=7),
        lambda it: it["pieces"].clear(),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[dict], Any], stacked: bool
) -> None:
    storage, manifest, _ = saved(tmp_path, stacked)
    change(manifest)
    with pytest.raises(DamagedFile, match="replay"):
        load(tmp_path, storage, manifest)
    assert len(storage) == 0


@pytest.mark.parametrize(
    "other",
    [FrameStackStorage(120, 2, 0.1), FrameStackStorage(100, 4, 0.1), FrameStackStorage(100, 2, 0.5)],
)
def test_a_memory_of_other_sizes_is_refused(tmp_path: Path, other: FrameStackStorage) -> None:
    _, manifest, _ = saved(tmp_path)
    sizes = ", ".join(f"{name} {size}" for name, size in other.sizes().items())
    message = f"has capacity 100, num_envs 2, slack_frames 5; expected {sizes}"
    with pytest.raises(UserError, match=message):
        load(tmp_path, other, manifest)


def test_a_memory_of_another_kind_is_refused(tmp_path: Path) -> None:
    _, manifest, _ = saved(tmp_path)
    with pytest.raises(UserError, match=r"slack_frames 5; expected capacity 100$"):
        load(tmp_path, TransitionStorage(100), manifest)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@both_kinds
def test_a_shard_that_would_run_code_is_refused_and_does_not(tmp_path: Path, stacked: bool) -> None:
    storage, manifest, path = saved(tmp_path, stacked)
    mark = tmp_path / "mark"
    manifest["pieces"][1]["sha256"] = write_checksummed({"numbers": Malicious(mark)}, path)
    with pytest.raises(DamagedFile, match=re.escape(f"{path} holds something else than plain data")):
        load(tmp_path, storage, manifest)
    assert not mark.exists()


@both_kinds
@pytest.mark.parametrize("content", [{}, [], {"numbers": 1}, {"numbers": torch.tensor([16, 32])}])
def test_a_shard_of_anything_else_is_refused(tmp_path: Path, stacked: bool, content: Any) -> None:
    storage, manifest, path = saved(tmp_path, stacked)
    manifest["pieces"][1]["sha256"] = write_checksummed(content, path)
    with pytest.raises(DamagedFile, match="replay"):
        load(tmp_path, storage, manifest)


# -- writing that fails --------------------------------------------------------------------------------------


def test_a_full_disk_leaves_whole_shards_and_the_memory_as_it_was(small_disk: Path, tmp_path: Path) -> None:
    storage = TransitionStorage(100_000)
    shards = ReplayShards(small_disk / "replay")
    stream = Stream(20, 0, 0.05, False)
    rollout = stream.rollout(100)
    storage.extend(rollout)
    manifest = shards.save(storage)
    expected = make_storage(100_000, 20, False)
    expected.extend(rollout)
    for _ in range(30):
        storage.extend(rollout)
    with pytest.raises(UnwritableFile, match=re.escape(str(small_disk / "replay"))):
        shards.save(storage)
    assert files(shards.directory) == [manifest["pieces"][0]["file"]]
    loaded = TransitionStorage(100_000)
    shards.require_intact(manifest)
    ReplayShards(small_disk / "replay").load(loaded, manifest)
    assert_same(loaded, expected)
    # The run may go on, and write what is missing once there is room: here, elsewhere.
    loaded = TransitionStorage(100_000)
    ReplayShards(tmp_path / "roomy").load(loaded, ReplayShards(tmp_path / "roomy").save(storage))
    assert_same(loaded, storage)


def test_after_a_save_that_failed_the_next_one_writes_what_is_missing(tmp_path: Path) -> None:
    storage, stream = TransitionStorage(100), Stream(2, 0, 0.05, False)
    shards = ReplayShards(tmp_path / "replay")
    storage.extend(stream.rollout(5))
    shards.save(storage)
    storage.extend(stream.rollout(5))
    shutil.move(tmp_path / "replay", tmp_path / "aside")
    (tmp_path / "replay").touch()
    with pytest.raises(UnwritableFile, match=r"in the directory .*replay: "):
        shards.save(storage)
    (tmp_path / "replay").unlink()
    shutil.move(tmp_path / "aside", tmp_path / "replay")
    loaded = TransitionStorage(100)
    load(tmp_path, loaded, shards.save(storage))
    assert_same(loaded, storage)


def test_a_process_killed_at_any_moment_leaves_whole_shards_only(tmp_path: Path) -> None:
    storage, stream = FrameStackStorage(40, 2), Stream(2, 0, 0.05, True)
    shards = ReplayShards(tmp_path / "replay")
    storage.extend(stream.rollout(10))
    first = checkpoint(shards, storage)
    expected = FrameStackStorage(40, 2)
    ReplayShards(tmp_path / "replay").load(expected, first)
    storage.extend(stream.rollout(30))
    storage.end_episodes()

    ended = False
    for moment in range(5, 400, 19):
        ended = killed_while(lambda: checkpoint(shards, storage), moment) is None
        manifest = manifest_in(tmp_path / "last.ckpt")
        shards.require_intact(manifest)
        for name in files(shards.directory):
            assert name.endswith(".partial") or is_intact(shards.directory / name)
        loaded = FrameStackStorage(40, 2)
        load(tmp_path, loaded, manifest)
        assert_same(loaded, storage if manifest != first else expected)
        if ended:
            break
    assert ended
    assert manifest != first
