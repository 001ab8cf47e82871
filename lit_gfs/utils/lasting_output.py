"""Output whose reader may be gone: ``| head``, or a closed terminal."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_GONE = {errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN, errno.EBADF}
"""Errors of a pipe, a socket or a terminal whose other end is gone."""


@contextmanager
def outlasting_readers() -> Iterator[None]:
    """Drop the output to stdout and stderr, instead of raising an error, once their readers are gone.

    A run is worth more than its output. Streams that replace stdout or stderr are left alone.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = _lasting(sys.stdout, sys.__stdout__)
    sys.stderr = _lasting(sys.stderr, sys.__stderr__)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a full disk, which was reported already
                stream.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: Any, original: Any) -> Any:
    if stream is None:  # it was closed before the process started
        return open(os.devnull, "w")
    if stream is not original:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_LastingFile(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _LastingFile(io.FileIO):
    """An open file that becomes the null device once its reader is gone."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # Replace the descriptor itself, because loggers and libraries use it in other streams.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return super().write(data)
