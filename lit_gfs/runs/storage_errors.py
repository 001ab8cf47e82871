"""Which errors of the operating system say that the place where a run writes is full, failing or gone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""A disk that cannot be written any more."""

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
"""One that is not to be relied on, for reading as for writing."""

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
"""A network's disk, or one behind another process, that does not answer."""

_FAILING = _FULL | {getattr(errno, name) for name in (*_UNRELIABLE, *_REMOTE) if hasattr(errno, name)}

_MISPLACED = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY}
"""A file or directory that is gone, or became something else: of the run's own, or anybody's."""


def is_storage_error(error: BaseException | None, directory: Path | None = None) -> bool:
    """Say whether an error is the storage's, rather than a bug's.

    Args:
        error: What was raised.
        directory: Where the run writes, and nobody else: that something is missing is the storage's fault
            only there.
    """
    if not isinstance(error, OSError):
        return False
    if error.errno in _MISPLACED:
        if directory is None:
            return False
        return _is_within(error.filename, directory) or _is_within(error.filename2, directory)
    return error.errno in _FAILING


def describe_storage_error(error: OSError, place: str | Path) -> str:
    """Say in one line what could not be done, and where.

    Args:
        error: One that `is_storage_error` accepts.
        place: Named where the error names no file.
    """
    # Of a file that cannot be opened it is not said what for.
    verb = "write" if error.errno in _FULL else "read or write"
    return f"cannot {verb} {os.fsdecode(error.filename or place)}: {error.strerror}"


def _is_within(name: object, directory: Path) -> bool:
    if not isinstance(name, str | bytes | os.PathLike):
        return False
    # Neither is looked at on the disk, which may not answer.
    return Path(os.path.abspath(os.fsdecode(name))).is_relative_to(os.path.abspath(directory))
