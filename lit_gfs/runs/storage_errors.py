"""Errors of the operating system that mean a full, failing or missing storage of a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""The disk cannot be written any more."""

_UNRELIABLE = (
    "EIO",
    "EACCES",
    "EPERM",
    "EUCLEAN",
    "EBADMSG",
    "ENODEV",
    "ENXIO",
    "ENOMEDIUM",
    "ENOLCK",
    "ELOOP",
)
"""The disk is unreliable, for reading and for writing."""

_REMOTE: tuple[str, ...] = (
    "ESTALE",
    "ENOTCONN",
    "ETIMEDOUT",
    "EHOSTDOWN",
    "EHOSTUNREACH",
    "ENETDOWN",
    "ENETUNREACH",
    "ENETRESET",
)
_REMOTE += ("ECONNABORTED", "ECONNRESET", "ESHUTDOWN", "EREMOTEIO", "ENOLINK", "ENONET", "ECOMM")
_REMOTE += ("EPROTO", "ENOKEY", "EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED")
"""A disk behind a network or another process does not answer."""

_FAILING = _FULL | {getattr(errno, name) for name in (*_UNRELIABLE, *_REMOTE) if hasattr(errno, name)}

_MISPLACED = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY}
"""A file or directory is gone, or has become something else; it may or may not belong to the run."""


def is_storage_error(error: BaseException | None, directory: Path | None = None) -> bool:
    """Return whether an error comes from the storage, rather than from a bug.

    Args:
        error: The error.
        directory: The run's own directory. A missing file counts as a storage error only there.
    """
    if not isinstance(error, OSError):
        return False
    if error.errno in _MISPLACED:
        if directory is None:
            return False
        return _is_within(error.filename, directory) or _is_within(error.filename2, directory)
    return error.errno in _FAILING


def describe_storage_error(error: OSError, place: str | Path) -> str:
    """Describe in one line the failed operation and its file.

    Args:
        error: An error that `is_storage_error` accepts.
        place: The file to name if the error does not name one.
    """
    # The error does not say whether the file was opened for reading or writing.
    verb = "write" if error.errno in _FULL else "read or write"
    return f"cannot {verb} {os.fsdecode(error.filename or place)}: {error.strerror}"


def _is_within(name: object, directory: Path) -> bool:
    if not isinstance(name, str | bytes | os.PathLike):
        return False
    # Compare the paths without looking at the disk, which may not answer.
    return Path(os.path.abspath(os.fsdecode(name))).is_relative_to(os.path.abspath(directory))
