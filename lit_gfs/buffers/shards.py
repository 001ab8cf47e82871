"""Replay memory on disk: pieces that are written once, each holding what was new since the one before.

The pieces lie in a directory beside the checkpoints. A checkpoint names those that it needs, with their
SHA-256, in a manifest: so the renaming that puts the checkpoint in its place puts all of them in place.
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
# A piece is copied before it is written: with Atari's frames, 230 MB at once.
_PIECE_TRANSITIONS = 1 << 15
_MANIFEST = {"sizes": dict, "position": dict, "pieces": list}
_PIECE = {"file": str, "first": int, "last": int, "sha256": str}


class ReplayShards:
    """The pieces of one replay memory in a directory, whose parent directory holds the checkpoints.

    Args:
        directory: Where the pieces are; it is made when the first one is written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._pieces: list[dict[str, Any]] = []
        self._named: dict[tuple[int, int, int], set[str]] = {}

    def save(self, storage: RingStorage) -> dict[str, Any]:
        """Write what is new since the last ``save`` or ``load``; first remove what no checkpoint needs.

        Args:
            storage: The replay memory, the same at every call.

        Returns:
            The manifest of the pieces that hold what ``storage`` holds, as plain data. It belongs into the
            checkpoint that is being written.

        Raises:
            UnwritableFile: If there is no room or no permission. All pieces that were there still are.
        """
        self._pieces = [piece for piece in self._pieces if piece["last"] > storage.first_row]
        self._remove_unnamed()
        for first, last in self._new_rows(storage):
            path = self._free_path(first, last)
            digest = write_checksummed(storage.rows(first, last), path)
            self._pieces.append({"file": path.name, "first": first, "last": last, "sha256": digest})
        return {
            "sizes": storage.sizes(),
            "position": storage.position(),
            "pieces": [dict(piece) for piece in self._pieces],
        }

    def load(self, storage: RingStorage, manifest: dict[str, Any]) -> None:
        """Replace what ``storage`` holds by what was saved; the next ``save`` goes on from there.

        Args:
            storage: A replay memory with the sizes of the saved one.
            manifest: What `save` returned.

        Raises:
            DamagedFile: If a piece is missing or not as it was written; ``storage`` is empty then.
            UserError: If the sizes differ, or the manifest is none.
        """
        pieces = self._checked(manifest)
        try:
            storage.restore(manifest["sizes"], manifest["position"], map(self._read, pieces))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise DamagedFile(
                f"the replay pieces in {self.directory} do not fit together: {error}"
            ) from error
        self._pieces = pieces

    def require_intact(self, manifest: dict[str, Any]) -> None:
        """Check every byte of the pieces that a manifest names, without loading them.

        Raises:
            DamagedFile: If a piece is missing or not as it was written.
            UserError: If the manifest is none.
        """
        for piece in self._checked(manifest):
            path = self.directory / piece["file"]
            if not is_intact(path, piece["sha256"]):
                raise DamagedFile(f"{path} is missing or damaged")

    def remove_unused(self, manifests: Iterable[Any]) -> None:
        """Remove the pieces that nobody needs, and what killed processes left half written.

        Args:
            manifests: Manifests, or whole checkpoints with manifests in them. The pieces of the last ``save``
                or ``load`` stay besides.
        """
        used = self._current().union(*map(shard_names, manifests))
        for name in self._files() - used:
            # What cannot be removed takes up room and does no other harm.
            with contextlib.suppress(OSError):
                (self.directory / name).unlink()

    def _remove_unnamed(self) -> None:
        """Remove the pieces that no checkpoint in the parent directory names."""
        if self._files() <= self._current():
            return
        # Of a damaged checkpoint it is not known what it named: nothing is removed.
        with contextlib.suppress(OSError, DamagedFile):
            self._named = dict(map(self._named_in, self.directory.parent.rglob("*.ckpt")))
            self.remove_unused(self._named.values())

    def _named_in(self, checkpoint: Path) -> tuple[tuple[int, int, int], set[str]]:
        """Return what tells a checkpoint from others, and the pieces that it names; read it only once."""
        status = checkpoint.stat()
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        if version in self._named:
            return version, self._named[version]
        return version, shard_names(read_checksummed(checkpoint))

    def _current(self) -> set[str]:
        return {piece["file"] for piece in self._pieces}

    def _new_rows(self, storage: RingStorage) -> Iterator[tuple[int, int]]:
        """Yield the first and last row of each piece to be written."""
        first = max(storage.first_row, self._pieces[-1]["last"] if self._pieces else 0)
        last = storage.row_count
        if first < last:
            step = max(1, _PIECE_TRANSITIONS * last // storage.write_count)
            for begin in range(first, last, step):
                yield begin, min(begin + step, last)

    def _free_path(self, first: int, last: int) -> Path:
        """Return a new name: a run that is resumed further back does not overwrite what it wrote then."""
        stem = f"replay_{first:012d}-{last:012d}"
        path, number = self.directory / f"{stem}.pt", 1
        while path.exists():
            path, number = self.directory / f"{stem}_{number}.pt", number + 1
        return path

    def _read(self, piece: dict[str, Any]) -> Any:
        path = self.directory / piece["file"]
        rows = read_checksummed(path, piece["sha256"])
        if rows["numbers"].tolist() != [piece["first"], piece["last"]]:
            raise DamagedFile(f"{path} does not hold the rows {piece['first']} to {piece['last']}")
        return rows

    def _checked(self, manifest: Any) -> list[dict[str, Any]]:
        """Return the pieces of a manifest, whose every file is known to lie in the directory."""
        if not (
            _has(manifest, _MANIFEST)
            and all(_has(piece, _PIECE) for piece in manifest["pieces"])
            and all(isinstance(size, int) for size in manifest["sizes"].values())
        ):
            raise UserError(f"expected a manifest of replay pieces: entries {', '.join(_MANIFEST)}")
        for piece in manifest["pieces"]:
            if not _NAME.fullmatch(piece["file"]):
                raise UserError(
                    f"the checkpoint names the replay piece {piece['file']!r}; expected a file such as"
                    " 'replay_000000000000-000000010000.pt' in the directory of its pieces"
                )
        return [dict(piece) for piece in manifest["pieces"]]

    def _files(self) -> set[str]:
        """Return the names of all pieces, half written ones too."""
        names = (path.name for path in self.directory.glob("replay_*"))
        return {name for name in names if _NAME.fullmatch(name.removesuffix(PARTIAL))}


def replay_name(rank: int) -> str:
    """Return the name of the directory of a process's transitions."""
    return f"replay_{rank}" if rank else "replay"


def find_replay(checkpoint: Path, rank: int = 0) -> Path:
    """Return the directory of the transitions that a checkpoint names: beside it, or one directory up."""
    directory = checkpoint.resolve().parent
    here, above = (parent / replay_name(rank) for parent in (directory, directory.parent))
    return above if above.is_dir() and not here.is_dir() else here


def shard_names(content: Any) -> set[str]:
    """Return the names of replay pieces anywhere in a checkpoint's dictionaries and lists."""
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
