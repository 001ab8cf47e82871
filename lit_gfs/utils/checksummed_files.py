"""Checksummed files: written atomically, and checked byte for byte before their content is used.

A checksummed file is a zip archive from ``torch.save`` with the SHA-256 of that archive as its comment.
``torch.load`` reads it like any other. Checkpoints and replay shards are checksummed files.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import IO, Any, cast

import torch

from lit_gfs.errors import UserError
from lit_gfs.utils.atomic_files import replacing

_PREFIX = b"sha256:"
_COMMENT_SIZE = len(_PREFIX) + hashlib.sha256().digest_size * 2
# A zip archive ends with the length of its comment, then the comment.
_NO_COMMENT = (0).to_bytes(2, "little")
_COMMENT_LENGTH = _COMMENT_SIZE.to_bytes(2, "little")
_CHUNK = 1 << 20


class DamagedFile(UserError):
    """A checksummed file is missing, cut short or changed, or has no checksum."""


class UnwritableFile(UserError):
    """A checksummed file cannot be written: the disk is full, the directory read-only ..."""


def write_checksummed(content: dict[str, Any], path: Path) -> str:
    """Write a checksummed file atomically: readers see either the old file or the whole new one.

    Args:
        content: Tensors, numbers, strings, and lists and dictionaries of them. A view is written with its
            whole base tensor.
        path: The file. An old one is replaced, missing directories are made.

    Returns:
        The SHA-256 of the file, in hexadecimal digits.

    Raises:
        UnwritableFile: If there is no room or no permission. The old file at ``path`` stays.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            digest = _save(content, file)
        _sync_directory(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise UnwritableFile(
            f"cannot write {path.name!r} in the directory {path.parent}: {reason}"
        ) from error
    return digest


def read_checksummed(path: Path, digest: str | None = None) -> Any:
    """Read a checksummed file, after checking every byte of it.

    It loads only plain data (``weights_only``): a pickle that would run code is refused.

    Args:
        path: The file.
        digest: The expected SHA-256, in hexadecimal digits; by default any.

    Returns:
        The content, with all tensors on the CPU.

    Raises:
        DamagedFile: If the file is damaged, or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            _verify(file, path, digest)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except DamagedFile:
        raise
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror or error}") from error
    # The checksum is not a signature: the content may be anything, so torch.load may fail in any way.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedFile(f"{path} holds something else than plain data: {reason}") from error


def is_intact(path: Path, digest: str | None = None) -> bool:
    """Return whether a file exists, has a checksum, and matches it.

    Args:
        path: The file.
        digest: The expected SHA-256, in hexadecimal digits; by default any.
    """
    try:
        with Path(path).open("rb") as file:
            _verify(file, path, digest)
    except (OSError, DamagedFile):
        return False
    return True


class _HashingFile:
    """Writes to a file and hashes the written data."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing; torch calls it after every record."""

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def _save(content: dict[str, Any], file: IO[bytes]) -> str:
    hashing = _HashingFile(file)
    try:
        torch.save(content, cast(IO[bytes], hashing))
    except Exception:
        # torch reports only that writing failed: raise the original error.
        if hashing.error is not None:
            raise hashing.error from None
        raise
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    file.write(_COMMENT_LENGTH + _PREFIX + hashing.digest.encode())
    return hashing.digest


def _verify(file: IO[bytes], path: Path, digest: str | None) -> None:
    """Check a file against its checksum, and the checksum against ``digest``."""
    size = os.fstat(file.fileno()).st_size
    left = size - _COMMENT_SIZE - len(_COMMENT_LENGTH)
    hashed = hashlib.sha256()
    while left > 0 and (chunk := file.read(min(_CHUNK, left))):
        hashed.update(chunk)
        left -= len(chunk)
    hashed.update(_NO_COMMENT)
    if file.read(len(_COMMENT_LENGTH) + len(_PREFIX)) != _COMMENT_LENGTH + _PREFIX:
        raise DamagedFile(f"{path} is cut short or was not written by lit_gfs: its seal is missing")
    if file.read() != hashed.hexdigest().encode():
        raise DamagedFile(f"{path} is damaged: its content does not match its seal (SHA-256)")
    if digest is not None and digest != hashed.hexdigest():
        raise DamagedFile(f"{path} is another file than expected: its SHA-256 does not begin {digest[:12]}")


def _sync_directory(directory: Path) -> None:
    """Make a renaming survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync directories; the file itself is complete.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)
