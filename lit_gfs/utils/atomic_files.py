"""Files that are written whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TextIO

PARTIAL = ".partial"
"""The end of a file's name while it is written; a killed process leaves such a file behind."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes its place once it is complete and on the disk: nobody ever reads half of it.

    Args:
        path: Where, in a directory that exists. A file there is replaced; a link is too, and not followed.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        # What is there may be a link to somewhere else.
        partial.unlink(missing_ok=True)
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # what went wrong before says more
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_text(path: Path) -> Iterator[TextIO]:
    """Open a text file, in UTF-8 and with line ends as they are written, as `replacing` does."""
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        try:
            yield text
        finally:
            text.detach()  # which flushes; the file is closed when it has been synced
