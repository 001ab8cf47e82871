"""Replay memory on disk: shards, each written once with the transitions that are new since the one before.

The shards are files in a directory beside the checkpoints. A checkpoint has a manifest of the shards that it
needs, with their SHA-256. So the renaming that puts a checkpoint in place also makes its shards valid.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_gfs.errors import UserError
from lit_gfs.utils.atomic_files import PARTIAL
from lit_gfs.utils.checksummed_files import DamagedFile, is_intact, read_checksummed, write_checksummed

if TYPE_CHECKING:
    from lit_gfs.buffers.ring import RingStorage

_NAME = re.compile(r"replay_\d{12,}-\d{12,}(_\d+)?\.pt")
# A shard is copied before it is written: with Atari's frames, 230 MB at once.
_SHARD_TRANSITIONS = 1 << 15
# Checkpoints have this key: a "piece" is a shard.
_MANIFEST = {"sizes": dict, "position": dict, "pieces": list}
_SHARD = {"file": str, "first": int, "last": int, "sha256": str}


class ReplayShards:
    """The shards of one replay memory, in a directory whose parent directory holds the checkpoints.

    Args:
        directory: The directory of the shards; the first shard creates it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._shards: list[dict[str, Any]] = []
        # Names of the shards of each checkpoint, so that every checkpoint is read only once.
        self._named: dict[tuple[int, int, int], set[str]] = {}

    def save(self, storage: RingStorage) -> dict[str, Any]:
        """Remove shards that no checkpoint needs, then write what is new since the last ``save`` or ``load``.

        Args:
            storage: The replay memory, the same at every call.

        Returns:
            The manifest of the shards that hold the content of ``storage``, as plain data. It belongs into
            the checkpoint that is being written.

        Raises:
            UnwritableFile: If there is no room or no permission. The earlier shards are still complete.
        """
        self._shards = [shard for shard in self._shards if shard["last"] > storage.first_row]
        self._remove_unnamed()
        for first, last in self._new_rows(storage):
            path = self._free_path(first, last)
            digest = write_checksummed(storage.rows(first, last), path)
            self._shards.append({"file": path.name, "first": first, "last": last, "sha256": digest})
        return {
            "sizes": storage.sizes(),
            "position": storage.position(),
            "pieces": [dict(shard) for shard in self._shards],
        }

    def load(self, storage: RingStorage, manifest: dict[str, Any]) -> None:
        """Replace the content of ``storage`` by the saved one; the next ``save`` goes on from there.

        Args:
            storage: A replay memory with the sizes of the saved one.
            manifest: The result of `save`.

        Raises:
            DamagedFile: If a shard is missing or has changed; ``storage`` is empty then.
            UserError: If the sizes differ, or the manifest is malformed.
        """
        shards = self._checked(manifest)
        try:
            storage.restore(manifest["sizes"], manifest["position"], map(self._read, shards))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise DamagedFile(
                f"the replay pieces in {self.directory} do not fit together: {error}"
            ) from error
        self._shards = shards

    def require_intact(self, manifest: dict[str, Any]) -> None:
        """Check every byte of the shards that a manifest names, without loading them.

        Raises:
            DamagedFile: If a shard is missing or has changed.
            UserError: If the manifest is malformed.
        """
        for shard in self._checked(manifest):
            path = self.directory / shard["file"]
            if not is_intact(path, shard["sha256"]):
                raise DamagedFile(f"{path} is missing or damaged")

    def remove_unused(self, manifests: Iterable[Any]) -> None:
        """Remove the shards that are not needed, and files that killed processes left half written.

        Args:
            manifests: Manifests, or whole checkpoints with manifests in them. Their shards stay, and also
                those of the last ``save`` or ``load``.
        """
        used = self._current().union(*map(shard_names, manifests))
        for name in self._files() - used:
            # A file that cannot be removed takes up room and does no other harm.
            with contextlib.suppress(OSError):
                (self.directory / name).unlink()

    def _remove_unnamed(self) -> None:
        """Remove the shards that no checkpoint in the parent directory names."""
        if self._files() <= self._current():
            return
        # A damaged checkpoint may name any shard: then nothing is removed.
        with contextlib.suppress(OSError, DamagedFile):
            self._named = dict(map(self._named_in, self.directory.parent.rglob("*.ckpt")))
            self.remove_unused(self._named.values())

    def _named_in(self, checkpoint: Path) -> tuple[tuple[int, int, int], set[str]]:
        """Return a key for this version of a checkpoint, and the shards that it names."""
        status = checkpoint.stat()
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        if version in self._named:
            return version, self._named[version]
        return version, shard_names(read_checksummed(checkpoint))

    def _current(self) -> set[str]:
        return {shard["file"] for shard in self._shards}

    def _new_rows(self, storage: RingStorage) -> Iterator[tuple[int, int]]:
        """Yield the first row of each new shard, and the row after its last one."""
        first = max(storage.first_row, self._shards[-1]["last"] if self._shards else 0)
        last = storage.row_count
        if first < last:
            step = max(1, _SHARD_TRANSITIONS * last // storage.write_count)
            for begin in range(first, last, step):
                yield begin, min(begin + step, last)

    def _free_path(self, first: int, last: int) -> Path:
        """Return an unused path: a run that resumes from an earlier checkpoint keeps its later shards."""
        stem = f"replay_{first:012d}-{last:012d}"
        path, number = self.directory / f"{stem}.pt", 1
        while path.exists():
            path, number = self.directory / f"{stem}_{number}.pt", number + 1
        return path

    def _read(self, shard: dict[str, Any]) -> Any:
        path = self.directory / shard["file"]
        rows = read_checksummed(path, shard["sha256"])
        if rows["numbers"].tolist() != [shard["first"], shard["last"]]:
            raise DamagedFile(f"{path} does not hold the rows {shard['first']} to {shard['last']}")
        return rows

    def _checked(self, manifest: Any) -> list[dict[str, Any]]:
        """Return the shards of a manifest, after checking that all paths lie in the directory."""
        if not (
            _has(manifest, _MANIFEST)
            and all(_has(shard, _SHARD) for shard in manifest["pieces"])
            and all(isinstance(size, int) for size in manifest["sizes"].values())
        ):
            raise UserError(f"expected a manifest of replay pieces: entries {', '.join(_MANIFEST)}")
        for shard in manifest["pieces"]:
            if not _NAME.fullmatch(shard["file"]):
                raise UserError(
                    f"the checkpoint names the replay piece {shard['file']!r}; expected a file such as"
                    " 'replay_000000000000-000000010000.pt' in the directory of its pieces"
                )
        return [dict(shard) for shard in manifest["pieces"]]

    def _files(self) -> set[str]:
        """Return the names of all shards in the directory, half written ones too."""
        names = (path.name for path in self.directory.glob("replay_*"))
        return {name for name in names if _NAME.fullmatch(name.removesuffix(PARTIAL))}


def replay_name(rank: int) -> str:
    """Return the name of the directory with the transitions of a process."""
    return f"replay_{rank}" if rank else "replay"


def find_replay(checkpoint: Path, rank: int = 0) -> Path:
    """Return the directory of a checkpoint's transitions: beside the checkpoint, or one directory up."""
    directory = checkpoint.resolve().parent
    here, above = (parent / replay_name(rank) for parent in (directory, directory.parent))
    return above if above.is_dir() and not here.is_dir() else here


def shard_names(content: Any) -> set[str]:
    """Return the names of shards anywhere in the dictionaries and lists of a checkpoint."""
    if isinstance(content, str):
        return {content} if _NAME.fullmatch(content) else set()
    if isinstance(content, dict):
        content = content.values()
    elif not isinstance(content, list | tuple | set):
        return set()
    return set().union(*map(shard_names, content))


def _has(value: Any, entries: Mapping[str, type]) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) for name, kind in entries.items()
    )
