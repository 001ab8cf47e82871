"""This package's own warnings on the command line: one line each, without a place in the code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

# In a checkout, two packages lie beside this one; find_spec locates them without importing them.
_OURS = tuple(
    str(Path(str(spec.origin)).resolve().parent)
    for spec in map(find_spec, ("lit_gfs", "lit_gfs.callbacks", "lit_gfs.datamodules"))
    if spec is not None
)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print this package's warnings as ``lit_gfs: warning: ...``, and leave other warnings unchanged."""
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
