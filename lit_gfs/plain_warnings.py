"""This package's own warnings on the command line: one line each, without the place in its code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lit_gfs.callbacks
import lit_gfs.datamodules

_OURS = tuple(
    str(Path(str(package.__file__)).resolve().parent)
    for package in (lit_gfs, lit_gfs.callbacks, lit_gfs.datamodules)
)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print what this package warns of as ``lit_gfs: warning: ...``; others' warnings stay as they are."""
    usual = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if not filename.startswith(_OURS):
            return usual(message, category, filename, lineno, line)
        return f"lit_gfs: warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = usual
