"""This package's own warnings on the command line: one line each, without the place in its code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

# Two packages stand beside this one in a checkout; they are found without importing them.
_OURS = tuple(
    str(Path(str(spec.origin)).resolve().parent)
    for spec in map(find_spec, ("lit_gfs", "lit_gfs.callbacks", "lit_gfs.datamodules"))
    if spec is not None
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
