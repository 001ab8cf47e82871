"""Atomic writing of files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TextIO

PARTIAL = ".partial"
"""Suffix of a file while it is written; a killed process leaves such a file behind."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its name only once it is complete and on the disk.

    Args:
        path: The file, in an existing directory. An old file is replaced; so is a link, not its target.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        # An old partial file may be a link to another place.
        partial.unlink(missing_ok=True)
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error says more
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_text(path: Path) -> Iterator[TextIO]:
    """Open a text file as `replacing` does, in UTF-8 and without changing line ends."""
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        try:
            yield text
        finally:
            text.detach()  # flushes; `replacing` syncs and closes the file
