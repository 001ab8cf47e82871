"""Text files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lit_gfs.runs.sealed import PARTIAL


@contextmanager
def write_atomically(path: Path) -> Iterator[TextIO]:
    """Open a text file that takes its place once it is complete: nobody ever reads half of it.

    Args:
        path: Where, in a directory that exists. A file there is replaced; a link is too, and not followed.
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        with partial.open("x", newline="", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
