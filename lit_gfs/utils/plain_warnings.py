"""This package's warnings, and one of Lightning's, in one line each on the command line."""

from __future__ import annotations

import ast
import re
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
# Lightning's advice is for programs: on the command line, the user has just left the callbacks out.
_MISSING_CALLBACKS = re.compile(r"Be aware that when using `ckpt_path`, callbacks .*: (\[.*\])\.$")


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print this package's warnings as ``lit_gfs: warning: ...``, and leave others unchanged but for one.

    Lightning's warning about callbacks that a checkpoint has and a run lacks only names these callbacks.
    """
    usual = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        text = " ".join(str(message).split())
        if missing := _MISSING_CALLBACKS.match(text):
            names = (key.partition("{")[0] for key in ast.literal_eval(missing[1]))
            text = f"the checkpoint also has the state of {', '.join(names)}, which this run does without"
        elif not filename.startswith(_OURS):
            return usual(message, category, filename, lineno, line)
        return f"lit_gfs: warning: {text}\n"

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = usual
